"""Does guessing from a request's own text pay? Tokens per second with drafts against none, for two kinds of text.

Run: `python -m benchmarks.speculation [--model embedded|0.1b|0.5b] [--rows 1,4,8] [--quick] [--json FILE]`

`copy`: greedy, a prompt that repeats itself, so that the text soon does too: nearly every draft is right. `free`:
sampled at temperature 1: hardly anything stands in it twice, so drafts only cost. Both in turns with the same requests
without drafts, in one process, engine without HTTP; medians and ratios within the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine_in_process import EngineInProcess, prompt_of
from benchmarks.workload import MODELS

DRAFT_TOKENS = 8
PHRASE_TOKENS, PHRASES = 12, 6


@dataclass(frozen=True)
class Result:
    """One line of the table. Speeds are generated tokens per second over all rows."""

    rows: int
    text: str
    plain_tokens_per_s: float
    drafted_tokens_per_s: float
    ratio: float
    accepted_share: float
    tokens_per_row_step: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--rows", default="1,4,8", help="numbers of concurrent requests")
    parser.add_argument("--tokens", type=int, default=96, help="tokens generated per request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".loraplex" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="1 and 4 rows, 48 tokens, 2 repeats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.tokens, options.repeats = "1,4", 48, 2
    rows = [int(number) for number in options.rows.split(",")]
    bench = EngineInProcess(
        options.model,
        options.folder,
        device=options.device,
        adapters=max(rows),
        max_running=max(rows),
        kv_cache_tokens=max(rows) * (PHRASE_TOKENS * PHRASES + options.tokens + 32),
    )
    results = [
        _measure(bench, count, text, options.tokens, options.repeats) for text in ("copy", "free") for count in rows
    ]
    _print(options.model, results)
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": [asdict(result) for result in results]}))


def _measure(bench: EngineInProcess, rows: int, text: str, tokens: int, repeats: int) -> Result:
    seconds: dict[int, list[float]] = {0: [], DRAFT_TOKENS: []}
    drafted = accepted = steps = 0
    for repeat in range(repeats + 1):
        for drafts, taken in seconds.items():
            before = bench.engine.stats()
            value = _seconds(bench, rows, text, tokens, drafts)
            after = bench.engine.stats()
            if repeat:  # the first round warms up
                taken.append(value)
            if drafts:
                drafted += after.drafted_tokens - before.drafted_tokens
                accepted += after.accepted_tokens - before.accepted_tokens
                steps += after.steps - before.steps
    plain, fast = (statistics.median(taken) for taken in seconds.values())
    return Result(
        rows=rows,
        text=text,
        plain_tokens_per_s=rows * tokens / plain,
        drafted_tokens_per_s=rows * tokens / fast,
        ratio=plain / fast,
        accepted_share=accepted / max(1, drafted),
        tokens_per_row_step=(repeats + 1) * tokens / max(1, steps),
    )


def _seconds(bench: EngineInProcess, rows: int, text: str, tokens: int, drafts: int) -> float:
    """Seconds for all requests, prompts included: they are the same with and without drafts."""
    for row in range(rows):
        phrase = prompt_of(row, PHRASE_TOKENS)
        sampling = {"temperature": 1.0, "seed": row} if text == "free" else {}
        bench.ask(phrase * PHRASES, tokens, bench.adapter(row), drafts=drafts, **sampling)
    begin = time.perf_counter()
    bench.drain()
    return time.perf_counter() - begin


def _print(model: str, results: list[Result]) -> None:
    table = Table(title=f"{model}: up to {DRAFT_TOKENS} tokens guessed a step, an adapter on every row, tokens/s")
    for name in ("text", "rows", "plain", "with drafts", "ratio", "accepted", "tokens a step and row"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            r.text,
            str(r.rows),
            f"{r.plain_tokens_per_s:.0f}",
            f"{r.drafted_tokens_per_s:.0f}",
            f"{r.ratio:.2f}",
            f"{r.accepted_share:.0%}",
            f"{r.tokens_per_row_step:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
