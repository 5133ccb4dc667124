"""The process that compiles what clients send before the engine sees it, so that a grammar that takes too long, takes
too much memory or crashes the compiler ends this process, and nothing else.

It does: read sources from stdin, a line of JSON each, compile each within its own limits of processor time and memory,
and write a line with the grammar, or with the reason why not.
Run by `checker` as `python -m serving.grammars.worker '<json of WorkerSettings>'`; it ends with its stdin.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec
import numpy as np

from serving.grammars.compiler import GrammarCompiler, problem_of
from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import GrammarSource
from serving.grammars.verdicts import WorkerReply, WorkerSettings

MASK_WORD_BITS = 32


def main() -> int:
    """Entry point of the process."""
    settings = msgspec.json.decode(sys.argv[1], type=WorkerSettings)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        compiler = GrammarCompiler.load(
            Path(settings.tokenizer_file),
            vocabulary_tokens=settings.vocabulary_tokens,
            end_token_ids=settings.end_token_ids,
        )
    except GrammarRefusedError as error:
        _write(WorkerReply(refusal=error.reason))
        return 1
    _limit(resource.RLIMIT_AS, _address_bytes() + settings.compile_bytes)
    _write(WorkerReply())
    for line in sys.stdin.buffer:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + settings.compile_seconds)
        _write(_answer(compiler, msgspec.json.decode(line, type=GrammarSource)))
    return 0


def _answer(compiler: GrammarCompiler, source: GrammarSource) -> WorkerReply:
    """Compile, and work out the first mask: what the engine will do."""
    try:
        grammar = compiler.translate(source)
        matcher = compiler.compile(grammar)
        mask = np.zeros(-(-compiler.vocabulary_tokens // MASK_WORD_BITS), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            return WorkerReply(refusal=problem_of(matcher))
    except GrammarRefusedError as error:
        return WorkerReply(refusal=error.reason)
    except MemoryError:
        return WorkerReply(refusal="it needs more memory than is allowed")
    return WorkerReply(grammar=grammar)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_bytes() -> int:
    """The size of this process's address space now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _write(reply: WorkerReply) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
