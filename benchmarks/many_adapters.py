"""What do thousands of adapters cost? Throughput over 16 device slots against every adapter resident.

Run: `python -m benchmarks.many_adapters [--model embedded|0.1b|0.5b] [--registered 10,1000] [--quick] [--json FILE]`

Requests name adapters by a Zipf distribution over all that are registered; `--rows` of them are always in flight, and
as many are queued. The baseline is the very same requests in a second engine, which has a slot for every adapter that
they name, and all of them there before the clock runs: the same rows and neighbours, but no loads. Both in turns, in
one process, engine without HTTP; medians and ratios within the run. The names share some files on disk (10,000 adapters
at 0.5B would be 176 GB), but each is read, placed and evicted as an adapter of its own.
`host_mb` and `device_mb` are the most memory that adapters took: they grow with the budgets, not with the names.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine_in_process import EngineInProcess, prompt_of
from benchmarks.workload import MODELS

SLOTS = 16
FILES = 32
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Result:
    """One line of the table. Speeds are generated tokens per second; `loads` are copies to the device per request."""

    registered: int
    resident_tokens_per_s: float
    zipf_tokens_per_s: float
    ratio: float
    loads_per_request: float
    host_mb: float
    device_mb: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--registered", default="10,100,1000,10000", help="numbers of adapters")
    parser.add_argument("--rows", type=int, default=8, help="requests in flight")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=48, help="tokens generated per request")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf distribution")
    parser.add_argument("--host-mib", type=int, default=512, help="host memory for adapters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".loraplex" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="10 and 1,000 adapters, 24 requests, one repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.registered, options.requests, options.repeats = "10,1000", 24, 1
    counts = [int(count) for count in options.registered.split(",")]
    few = _engine(options, slots=SLOTS)
    all_resident = _engine(options, slots=max(SLOTS, min(options.requests, max(counts))))
    results = [_measure(few, all_resident, count, options) for count in counts]
    _print(options.model, results)
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": [asdict(result) for result in results]}))


def _engine(options: argparse.Namespace, *, slots: int) -> EngineInProcess:
    return EngineInProcess(
        options.model,
        options.folder,
        device=options.device,
        adapters=FILES,
        adapter_slots=slots,
        max_running=options.rows,
        host_cache_bytes=options.host_mib * 1024 * 1024,
        kv_cache_tokens=2 * options.rows * (PROMPT_TOKENS + options.tokens + 32),
    )


def _measure(
    few: EngineInProcess, all_resident: EngineInProcess, registered: int, options: argparse.Namespace
) -> Result:
    dice = random.Random(registered)
    weights = [1 / (rank + 1) ** options.exponent for rank in range(registered)]
    resident: list[float] = []
    zipf: list[float] = []
    loads = most_host_bytes = 0
    for repeat in range(options.repeats + 1):
        names = dice.choices(range(registered), weights, k=options.requests)
        for name in set(names):
            all_resident.ask(prompt_of(name, 1), 1, all_resident.adapter(name, f"{registered}-"))
        all_resident.drain()
        before = few.engine.stats().adapter_loads
        taken, host_bytes = _seconds(few, names, f"{registered}-", options)
        without_loads, _ = _seconds(all_resident, names, f"{registered}-", options)
        if repeat:  # the first round warms up
            zipf.append(taken)
            resident.append(without_loads)
            loads += few.engine.stats().adapter_loads - before
            most_host_bytes = max(most_host_bytes, host_bytes)
    generated = options.requests * options.tokens
    return Result(
        registered=registered,
        resident_tokens_per_s=generated / statistics.median(resident),
        zipf_tokens_per_s=generated / statistics.median(zipf),
        ratio=statistics.median(resident) / statistics.median(zipf),
        loads_per_request=loads / (options.requests * options.repeats),
        host_mb=most_host_bytes / 1e6,
        device_mb=few.engine.stats().slot_bytes / 1e6,
    )


def _seconds(bench: EngineInProcess, names: list[int], prefix: str, options: argparse.Namespace) -> tuple[float, int]:
    """Seconds for all requests with `rows` in flight and as many queued, and the most host memory of adapters."""
    waiting = list(reversed(names))
    most_host_bytes = inside = asked = 0
    begin = time.perf_counter()
    while waiting or bench.engine.has_work:
        while waiting and inside < 2 * options.rows:
            asked += 1
            inside += 1
            bench.ask(prompt_of(asked, PROMPT_TOKENS), options.tokens, bench.adapter(waiting.pop(), prefix))
        inside -= sum(output.finish_reason is not None for output in bench.step())
        most_host_bytes = max(most_host_bytes, bench.engine.pool.host_bytes)
    return time.perf_counter() - begin, most_host_bytes


def _print(model: str, results: list[Result]) -> None:
    table = Table(title=f"{model}: {SLOTS} slots, rank 16 on every layer, Zipf-distributed requests, tokens/s")
    for name in ("registered", "all resident", "of many", "ratio", "loads a request", "host MB", "device MB"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            f"{r.registered:,}",
            f"{r.resident_tokens_per_s:.0f}",
            f"{r.zipf_tokens_per_s:.0f}",
            f"{r.ratio:.2f}",
            f"{r.loads_per_request:.2f}",
            f"{r.host_mb:.0f}",
            f"{r.device_mb:.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
