"""How late is the first token of an adapter that is only on disk, and what do the others notice of its coming?

Run: `python -m benchmarks.cold_adapter [--model embedded|0.1b|0.5b] [--quick] [--json FILE]`

`resident_ms` and `disk_ms`: queued to first token, alone in the engine, in turns with an adapter in its slot and with
one that was never seen (its file may be in the system's cache), with host memory full, as it is in a server that has
run for a while. `quiet_p99_ms` and `loading_p99_ms`: the gap between two tokens of `--rows` rows that decode, without
anything else, and while requests of one token for ever new adapters come so that one is always being read. The gap
includes their one-token prompts. One process, engine without HTTP.
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

PROMPT_TOKENS = 16
QUEUED = 2


@dataclass(frozen=True)
class Result:
    """Milliseconds; `gap_ratio` is loading over quiet, `loads` the adapters that came meanwhile."""

    resident_ms: float
    disk_ms: float
    added_ms: float
    quiet_p50_ms: float
    quiet_p99_ms: float
    loading_p50_ms: float
    loading_p99_ms: float
    gap_ratio: float
    loads: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--rows", type=int, default=4, help="rows that decode meanwhile")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".loraplex" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="64 tokens, 5 repeats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.tokens, options.repeats = 64, 5
    bench = EngineInProcess(
        options.model,
        options.folder,
        device=options.device,
        adapters=options.rows + 8,
        adapter_slots=options.rows + 4,
        max_running=options.rows + 4,
        host_cache_bytes=256 * 1024 * 1024,
        kv_cache_tokens=(options.rows + 4) * (PROMPT_TOKENS + options.tokens + 32),
    )
    result = _measure(bench, options.rows, options.tokens, options.repeats)
    _print(options.model, options.rows, result)
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": [asdict(result)]}))


def _measure(bench: EngineInProcess, rows: int, tokens: int, repeats: int) -> Result:
    _fill_host_memory(bench)
    resident, disk = [], []
    for repeat in range(repeats + 1):
        known = _first_token_seconds(bench, 0, "resident-", repeat)
        new = _first_token_seconds(bench, repeat, "disk-", repeat)
        if repeat:  # the first round warms up
            resident.append(known)
            disk.append(new)
    quiet, _ = _gaps(bench, rows, tokens, is_loading=False)
    loading, loads = _gaps(bench, rows, tokens, is_loading=True)
    return Result(
        resident_ms=1e3 * statistics.median(resident),
        disk_ms=1e3 * statistics.median(disk),
        added_ms=1e3 * (statistics.median(disk) - statistics.median(resident)),
        quiet_p50_ms=1e3 * statistics.median(quiet),
        quiet_p99_ms=1e3 * _p99(quiet),
        loading_p50_ms=1e3 * statistics.median(loading),
        loading_p99_ms=1e3 * _p99(loading),
        gap_ratio=_p99(loading) / _p99(quiet),
        loads=loads,
    )


def _fill_host_memory(bench: EngineInProcess) -> None:
    """Ask for new adapters until some are dropped for others: an adapter's memory is then that of one before."""
    number, held = 0, -1
    while len(bench.engine.pool.host_digests) > held:
        held = len(bench.engine.pool.host_digests)
        bench.ask(prompt_of(number, 1), 1, bench.adapter(number, "fills-"))
        bench.drain()
        number += 1


def _first_token_seconds(bench: EngineInProcess, number: int, name: str, salt: int) -> float:
    begin = time.perf_counter()
    bench.ask(prompt_of(salt, PROMPT_TOKENS), 1, bench.adapter(number, name))
    while not bench.step():
        pass
    return time.perf_counter() - begin


def _gaps(bench: EngineInProcess, rows: int, tokens: int, *, is_loading: bool) -> tuple[list[float], int]:
    """Seconds between the tokens of rows that decode, and how many adapters were loaded meanwhile."""
    talking = {bench.ask(prompt_of(row, PROMPT_TOKENS), tokens, bench.adapter(row, "talks-")) for row in range(rows)}
    started: set[str] = set()
    while started != talking:
        started |= {output.request_id for output in bench.step()}
    loads = bench.engine.stats().adapter_loads
    gaps, number = [], 0
    last = time.perf_counter()
    while talking:
        while is_loading and len(bench.engine.scheduler.waiting) < QUEUED:
            number += 1
            bench.ask(prompt_of(number, 1), 1, bench.adapter(number, "new-"))
        outputs = bench.step()
        now = time.perf_counter()
        if any(output.request_id in talking for output in outputs):
            gaps.append(now - last)
            last = now
        talking -= {output.request_id for output in outputs if output.finish_reason is not None}
    loaded = bench.engine.stats().adapter_loads - loads
    bench.drain()
    return gaps, loaded


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _print(model: str, rows: int, result: Result) -> None:
    table = Table(title=f"{model}: an adapter of rank 16 from disk, and the gaps of {rows} rows that decode")
    table.add_column("measure")
    table.add_column("ms", justify="right")
    for name, value in asdict(result).items():
        table.add_row(name.removesuffix("_ms"), f"{value:.2f}" if isinstance(value, float) else str(value))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
