"""How far is a decode step from what the machine allows? Its time against reading the weights and multiplying.

Run: `python -m benchmarks.step_floor [--model embedded|0.1b|0.5b] [--rows 1,8] [--quick] [--json FILE]`

The floor of a step without adapters is the larger of two times, both from this machine in this run: reading every
weight once at the measured memory bandwidth (4-bit codes and scales as bitsandbytes keeps them, the output head in its
own type), and all multiply-adds at the measured peak of bfloat16 products. Attention is not in it. Measured is the
engine, greedy, without HTTP; reported is the median of several runs. `outside_share` is the part of the step outside of
our kernels. On a CPU: the step's time without what each call of a kernel took, so Python and torch's own operators;
without kernels on this machine it is the whole step. On a GPU: the part before and after the forward, by CUDA events
around it, in which the host schedules and samples; what launching adds within a forward is the difference between
`--cuda-graphs off` and `on`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from basemodel.description import BaseDescription, ModuleShape
from benchmarks.decode_command import DecodeSettings, run_decode_benchmark
from benchmarks.serve_mixed import decode_seconds, least_seconds, read_bandwidth
from benchmarks.workload import open_base, ready_engine
from serving.engine.batch import Batch
from serving.engine.engine import Engine
from serving.engine.request import Row

NF4_BITS = 4.127  # a weight and its share of the scales, with double quantization
TIMED_TOKENS = 16
TIMED_RUNS = 3
PEAK_SIZE = 2048


@dataclass(frozen=True)
class Result:
    """One line of the table. Times in milliseconds a step."""

    rows: int
    step_ms: float
    read_ms: float
    multiply_ms: float
    floor_ratio: float
    outside_share: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    run_decode_benchmark(__doc__, arguments, rows="1,8", tokens=48, measure=measure, show=_print)


def measure(wanted: DecodeSettings) -> list[Result]:
    """One result for each number of rows."""
    rows, tokens, repeats, device = wanted.rows, wanted.tokens, wanted.repeats, wanted.device
    base = open_base(wanted.model, wanted.folder, device=device)
    engine = ready_engine(base, wanted.engine_settings())
    bandwidth, peak = read_bandwidth(device), _peak_multiply_adds(device)
    read_ms = 1e3 * _weight_bytes(base.description) / bandwidth
    weights = sum(shape.in_features * shape.out_features for shape in _multiplied(base.description))
    return [_measure_rows(engine, count, tokens, repeats, read_ms, 1e3 * weights * count / peak) for count in rows]


def _measure_rows(engine: Engine, rows: int, tokens: int, repeats: int, read_ms: float, multiply_ms: float) -> Result:
    nobody: list[Path | None] = [None] * rows
    decode_seconds(engine, nobody, tokens)  # warms up
    step_ms = 1e3 * statistics.median(decode_seconds(engine, nobody, tokens) for _ in range(repeats)) / tokens
    return Result(
        rows=rows,
        step_ms=step_ms,
        read_ms=read_ms,
        multiply_ms=multiply_ms,
        floor_ratio=step_ms / max(read_ms, multiply_ms),
        outside_share=_idle_share(engine, nobody) if engine.runner.is_gpu else _outside_share(engine, nobody),
    )


def _outside_share(engine: Engine, nobody: list[Path | None]) -> float:
    kernels = torch.ops.loraplex
    own = {name: getattr(kernels, name) for name in kernels if name != "is_supported"}
    inside = 0.0

    def timed(operator: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal inside
            begin = time.perf_counter()
            result = operator(*arguments)
            inside += time.perf_counter() - begin
            return result

        return call

    shares = []
    try:
        for name, operator in own.items():
            setattr(kernels, name, timed(operator))
        for _ in range(TIMED_RUNS):
            inside, begin = 0.0, time.perf_counter()
            decode_seconds(engine, nobody, TIMED_TOKENS)
            shares.append(1 - inside / (time.perf_counter() - begin))
    finally:
        for name, operator in own.items():
            setattr(kernels, name, operator)
    return statistics.median(shares)


def _idle_share(engine: Engine, nobody: list[Path | None]) -> float:
    """The part of a step before and after its forward on the device. Not yet run on a GPU."""
    forward = engine.runner.run
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(rows: list[Row]) -> tuple[Batch, torch.Tensor]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = forward(rows)
        end.record()
        events.append((begin, end))
        return result

    shares: list[float] = []
    try:
        engine.runner.run = timed  # type: ignore[method-assign]
        for _ in range(TIMED_RUNS):
            events.clear()
            began = time.perf_counter()
            decode_seconds(engine, nobody, TIMED_TOKENS)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            busy_ms = sum(begin.elapsed_time(end) for begin, end in events)
            shares.append(1 - float(busy_ms) / 1e3 / seconds)
    finally:
        engine.runner.run = forward  # type: ignore[method-assign]
    return statistics.median(shares)


def _multiplied(base: BaseDescription) -> list[ModuleShape]:
    """The layers whose weights a decode step reads: all linear ones, the output head included."""
    return [shape for shape in base.modules.values() if shape.kind == "linear"]


def _weight_bytes(base: BaseDescription) -> float:
    return sum(
        shape.in_features * shape.out_features * (NF4_BITS if shape.quantized else 16) / 8
        for shape in _multiplied(base)
    )


def _peak_multiply_adds(device: str) -> float:
    """Multiply-adds per second of torch's bfloat16 product of two large squares, the best of several."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(device, torch.bfloat16) for _ in range(2))
    return float(PEAK_SIZE**3 / least_seconds(lambda: left @ right))


def _print(model: str, results: list[Result]) -> None:
    table = Table(title=f"{model}: a decode step without adapters, milliseconds")
    for name in ("rows", "step", "reading", "multiplying", "step / floor", "outside of kernels"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            str(r.rows),
            f"{r.step_ms:.2f}",
            f"{r.read_ms:.2f}",
            f"{r.multiply_ms:.2f}",
            f"{r.floor_ratio:.2f}",
            f"{r.outside_share:.0%}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
