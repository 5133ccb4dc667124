"""What does a top-2 mixture on every row cost? A decode step of the engine against its own base and plain adapters.

Run: `python -m benchmarks.mixture_decode [--model embedded|0.1b|0.5b] [--rows 1,8] [--adapter-bits 8] [--json FILE]`

For each number of rows it decodes, in turn and several times, so that a change of the machine's speed meets all:
base (no adapter), plain (an adapter on every row, as many different ones as the mixture has experts), and mixture (one
mixture of these adapters on every row: a random gate over the running mean chooses 2 of 4 for each token). All greedy,
all the same lengths, one engine, no HTTP. Reported are medians, and the ratios within the run: LoRA-Switch's own figure
is 1.29 times the base (arXiv 2405.17741).
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from basemodel.mixture_gate import Mixture, write_mixture
from benchmarks.decode_command import DecodeSettings, run_decode_benchmark
from benchmarks.serve_mixed import RANK, decode_uses_seconds
from benchmarks.workload import open_base, random_adapters, ready_engine
from serving.engine.engine import Engine
from serving.messages import AdapterUse

EXPERTS = 4
TOP_K = 2


@dataclass(frozen=True)
class Result:
    """One line of the table. Times in milliseconds a step; ratios are to the base of the same run."""

    rows: int
    base_ms: float
    plain_ms: float
    mixture_ms: float
    plain_ratio: float
    mixture_ratio: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    run_decode_benchmark(__doc__, arguments, rows="1,4,8", tokens=64, measure=measure, show=_print)


def measure(wanted: DecodeSettings) -> list[Result]:
    """One result for each number of rows."""
    base = open_base(wanted.model, wanted.folder, device=wanted.device)
    adapters = random_adapters(
        base.description, wanted.folder / "adapters", count=EXPERTS, rank=RANK, adapter_bits=wanted.adapter_bits
    )
    experts = tuple(AdapterUse(digest=_digest(each), folder=str(each)) for each in adapters)
    hidden = int(base.model.get_input_embeddings().get_parameter("weight").shape[1])
    mixture = _mixture(wanted.folder / "mixture", base.description.fingerprint, hidden, experts)
    engine = ready_engine(base, wanted.engine_settings(adapter_slots=EXPERTS, check_probes=False))
    return [_measure_rows(engine, count, experts, mixture, wanted.tokens, wanted.repeats) for count in wanted.rows]


def _measure_rows(
    engine: Engine, rows: int, experts: tuple[AdapterUse, ...], mixture: AdapterUse, tokens: int, repeats: int
) -> Result:
    plain = [(experts[row % EXPERTS],) for row in range(rows)]
    contenders: dict[str, Callable[[], float]] = {
        "base": lambda: decode_uses_seconds(engine, [()] * rows, tokens),
        "plain": lambda: decode_uses_seconds(engine, plain, tokens),
        "mixture": lambda: decode_uses_seconds(engine, [(mixture,)] * rows, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            taken = run()
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return Result(
        rows=rows,
        base_ms=1e3 * median["base"] / tokens,
        plain_ms=1e3 * median["plain"] / tokens,
        mixture_ms=1e3 * median["mixture"] / tokens,
        plain_ratio=median["plain"] / median["base"],
        mixture_ratio=median["mixture"] / median["base"],
    )


def _mixture(folder: Path, fingerprint: str, hidden: int, experts: tuple[AdapterUse, ...]) -> AdapterUse:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    mixture = Mixture(
        base_fingerprint=fingerprint,
        top_k=TOP_K,
        experts=tuple(expert.digest for expert in experts),
        context="running_mean",
        decay=0.8,
        weight=torch.randn(EXPERTS, hidden, generator=generator) * 0.3,
        bias=torch.zeros(EXPERTS),
    )
    write_mixture(mixture, folder)
    return AdapterUse(digest=_digest(folder), folder=str(folder), experts=experts)


def _digest(folder: Path) -> str:
    return f"sha256:{hashlib.sha256(str(folder).encode()).hexdigest()}"


def _print(model: str, results: list[Result]) -> None:
    table = Table(title=f"{model}: a decode step, {EXPERTS} adapters of rank {RANK}, the mixture's top {TOP_K}, ms")
    for name in ("rows", "base", "plain", "mixture", "plain/base", "mixture/base"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            str(r.rows),
            f"{r.base_ms:.2f}",
            f"{r.plain_ms:.2f}",
            f"{r.mixture_ms:.2f}",
            f"{r.plain_ratio:.2f}",
            f"{r.mixture_ratio:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
