"""How does `loraplex serve` compare with llama.cpp's server? Tokens per second over HTTP, on the same model shape.

Run: `deploy/llama_cpp.sh FOLDER` once, then `python -m benchmarks.llama_cpp --peer FOLDER [--quick] [--json FILE]`

Both serve random weights in the shape of Qwen2.5-0.5B (vocabulary 32k) with two threads: ours as NF4, llama.cpp's as
Q4_0 (4.5 bits a weight both, before double quantization), and 8 rank-16 adapters of every linear layer. Cases, in turn
within one run: one client and 8 clients, on the base and on adapters (8 clients: 8 different ones), and long prompts.
Prompts are random token ids, different in every request, so no prefix is found in a cache. Figures are medians.
llama.cpp answers requests for the base from a server without adapters. Its two servers are stopped (SIGSTOP) while they
are not measured; ours stays as it is, and takes less than a hundredth of a core when nobody asks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import registry
from basemodel.description import BaseDescription
from basemodel.load import load_base
from benchmarks.registry_server import HOST, free_port
from benchmarks.workload import SHAPES, base_source, random_adapters
from registry.principal import OPERATOR

MODEL = "0.5b"
RANK = 16
ADAPTERS = 8
THREADS = 2
PROMPT_TOKENS = 32
LONG_PROMPT_TOKENS = 512
READY_SECONDS = 300.0

Ask = Callable[[int, list[int], int], None]
"""Ask adapter number i (-1: the base) to continue a prompt by so many tokens, and wait for the whole answer."""


@dataclass(frozen=True)
class Server:
    """A server under load. `rests`: it is stopped (SIGSTOP) whenever it is not measured."""

    ask: Ask
    process: subprocess.Popen[bytes]
    rests: bool

    @contextmanager
    def awake(self) -> Iterator[Ask]:
        """What to ask it, for as long as it is measured."""
        self.process.send_signal(signal.SIGCONT)
        yield self.ask
        self.rest()

    def rest(self) -> None:
        """Stop it, if it is one that rests."""
        if self.rests:
            self.process.send_signal(signal.SIGSTOP)


@dataclass(frozen=True)
class Case:
    """One kind of load. `tokens` are generated per request; with 1 the prompt is what is measured."""

    name: str
    clients: int
    uses_adapters: bool
    prompt_tokens: int
    tokens: int

    @property
    def counted_tokens(self) -> int:
        """Tokens of one request that count: those generated, or those of the prompt."""
        return self.prompt_tokens if self.tokens == 1 else self.tokens


@dataclass(frozen=True)
class Result:
    """One line of the table. `ratio` is ours over theirs."""

    case: str
    loraplex_tokens_per_s: float
    llama_cpp_tokens_per_s: float
    ratio: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="where deploy/llama_cpp.sh built llama.cpp")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated per request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".loraplex" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="16 tokens, one repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.tokens, options.repeats = 16, 1
    results = measure(options.peer, options.folder, options.tokens, options.repeats)
    _print(results)
    if options.json:
        options.json.write_text(json.dumps({"model": MODEL, "cases": [asdict(result) for result in results]}))


def measure(peer: Path, folder: Path, tokens: int, repeats: int) -> list[Result]:
    """One result for each case."""
    cases = [
        Case("8 clients, 8 adapters", 8, True, PROMPT_TOKENS, tokens),
        Case("8 clients, base", 8, False, PROMPT_TOKENS, tokens),
        Case("1 client, adapter", 1, True, PROMPT_TOKENS, tokens),
        Case("1 client, base", 1, False, PROMPT_TOKENS, tokens),
        Case("prompts, base", 1, False, LONG_PROMPT_TOKENS, 1),
        Case("prompts, adapter", 1, True, LONG_PROMPT_TOKENS, 1),
    ]
    source = base_source(MODEL, folder)
    description = load_base(source, cache_dir=folder / "bases").description
    adapters = random_adapters(description, folder / "adapters", count=ADAPTERS, rank=RANK)
    model, converted = _gguf_files(peer, Path(source), folder, adapters)
    with ExitStack() as stack:
        ours = stack.enter_context(_loraplex(source, folder, description, adapters))
        theirs = stack.enter_context(_llama_cpp(peer, model, []))
        theirs_adapted = stack.enter_context(_llama_cpp(peer, model, converted))
        return [_measure_case(case, ours, theirs_adapted if case.uses_adapters else theirs, repeats) for case in cases]


def _measure_case(case: Case, ours: Server, theirs: Server, repeats: int) -> Result:
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        for name, server in (("ours", ours), ("theirs", theirs)):
            with server.awake() as ask:
                seconds = _load(case, ask)
            if repeat:  # the first round warms up
                rates[name].append(case.clients * case.counted_tokens / seconds)
    mine, peers = statistics.median(rates["ours"]), statistics.median(rates["theirs"])
    return Result(case.name, mine, peers, mine / peers)


def _load(case: Case, ask: Ask) -> float:
    """Seconds until every client has its answer."""
    vocabulary = SHAPES[MODEL].vocab_size
    prompts = [[random.randrange(3, vocabulary) for _ in range(case.prompt_tokens)] for _ in range(case.clients)]
    threads = [
        threading.Thread(target=ask, args=(index if case.uses_adapters else -1, prompt, case.tokens))
        for index, prompt in enumerate(prompts)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


@contextmanager
def _loraplex(source: str, folder: Path, base: BaseDescription, adapters: list[Path]) -> Iterator[Server]:
    """`loraplex serve` with the adapters published as `bench/a0` and so on."""
    home = folder / "llama-cpp-home"
    with registry.open(home / "registry") as opened:
        opened.register_base(base.to_json())
        if all(tenant.name != "bench" for tenant in opened.list_tenants()):
            opened.create_tenant("bench")
        for index, adapter in enumerate(adapters):
            opened.publish(adapter, f"bench/a{index}", principal=OPERATOR, base_fingerprint=base.fingerprint)
    port = free_port()
    command = [sys.executable, "-m", "loraplex", "serve", "--home", str(home), "--base", source]
    command += ["--port", str(port), "--adapter-slots", str(len(adapters)), "--threads", str(THREADS)]

    def ask(adapter: int, prompt: list[int], tokens: int) -> None:
        model = base.name if adapter < 0 else f"bench/a{adapter}"
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = _post(port, "/v1/completions", body)
        assert answer["usage"]["completion_tokens"] == tokens

    with _process(command, port, "/readyz") as process:
        yield Server(ask, process, rests=False)


@contextmanager
def _llama_cpp(peer: Path, model: Path, adapters: list[Path]) -> Iterator[Server]:
    """llama.cpp's server; every adapter's scale is 0 unless a request says otherwise."""
    port = free_port()
    context_tokens = ADAPTERS * 1024
    command = [str(peer / "build" / "bin" / "llama-server"), "-m", str(model), "--port", str(port), "--no-webui"]
    command += ["-t", str(THREADS), "-np", str(ADAPTERS), "-c", str(context_tokens), "--lora-init-without-apply"]
    for adapter in adapters:
        command += ["--lora", str(adapter)]

    def ask(adapter: int, prompt: list[int], tokens: int) -> None:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        if adapter >= 0:
            body["lora"] = [{"id": adapter, "scale": 1.0}]
        answer = _post(port, "/completion", body)
        assert answer["tokens_predicted"] == tokens

    with _process(command, port, "/health") as process:
        server = Server(ask, process, rests=True)
        server.rest()
        yield server


def _post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=600)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == http.client.OK, text[:500]
        parsed: dict[str, Any] = json.loads(text)
        return parsed
    finally:
        connection.close()


@contextmanager
def _process(command: list[str], port: int, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_ready(port, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{Path(command[0]).name} did not become ready: {' '.join(command)}")
            time.sleep(0.2)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(timeout=60)


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def _gguf_files(peer: Path, source: Path, folder: Path, adapters: list[Path]) -> tuple[Path, list[Path]]:
    """The model in Q4_0 and the adapters, made once."""
    whole, quantized, target = folder / f"{MODEL}-f16.gguf", folder / f"{MODEL}-q4_0.gguf", folder / "adapters-gguf"
    command = [sys.executable, "-m", "benchmarks.llama_cpp_files", "--source", str(source), "--model", str(whole)]
    command += ["--adapters", str(target), *map(str, adapters)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(peer / "gguf-py")})
    if not quantized.exists():
        quantizer = str(peer / "build" / "bin" / "llama-quantize")
        subprocess.run([quantizer, str(whole), str(quantized), "Q4_0"], check=True, stdout=subprocess.DEVNULL)
    return quantized, [target / f"{index}.gguf" for index in range(len(adapters))]


def _print(results: list[Result]) -> None:
    table = Table(title=f"loraplex serve and llama.cpp's server, {MODEL}, 2 threads, tokens/s over HTTP")
    for heading in ("case", "loraplex", "llama.cpp", "ratio"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for result in results:
        table.add_row(
            result.case,
            f"{result.loraplex_tokens_per_s:.0f}",
            f"{result.llama_cpp_tokens_per_s:.0f}",
            f"{result.ratio:.2f}x",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
