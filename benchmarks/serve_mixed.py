"""What does a different adapter on every row cost? Tokens per second of the engine against its own base and PEFT.

Run: `python -m benchmarks.serve_mixed [--model embedded|0.1b|0.5b] [--rows 1,4,8] [--adapter-bits 8] [--json FILE]`

For each number of rows it decodes, in turn and several times, so that a change of the machine's speed meets all:
base (no adapter), same (one adapter on every row), mixed (a different adapter on every row), and PEFT
(`generate(adapter_names=...)`, the same adapters, the same quantized base). All greedy, all the same lengths, in one
process, engine and PEFT without HTTP. Reported are medians, and the ratios within the run.
`adapter_read_ms` is the least time in which the adapters' bytes can be read at the memory bandwidth measured here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from basemodel.four_bit import Linear4bit
from basemodel.load import Base
from benchmarks.decode_command import PROMPT_TOKENS, DecodeSettings, run_decode_benchmark
from benchmarks.engine_in_process import prompt_of
from benchmarks.workload import open_base, random_adapters, ready_engine
from serving.engine.engine import Engine
from serving.messages import AdapterUse, Generate, Sampling

RANK = 16


@dataclass(frozen=True)
class Result:
    """One line of the table. Speeds are generated tokens per second over all rows."""

    rows: int
    base_tokens_per_s: float
    same_tokens_per_s: float
    mixed_tokens_per_s: float
    peft_tokens_per_s: float
    added_ms: float
    adapter_read_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    run_decode_benchmark(__doc__, arguments, rows="1,4,8,16,32", tokens=64, measure=measure, show=_print)


def measure(wanted: DecodeSettings) -> list[Result]:
    """One result for each number of rows."""
    most = max(wanted.rows)
    served = open_base(wanted.model, wanted.folder, device=wanted.device)
    adapters = random_adapters(
        served.description, wanted.folder / "adapters", count=most, rank=RANK, adapter_bits=wanted.adapter_bits
    )
    settings = wanted.engine_settings(adapter_slots=most, adapter_pool_bytes=None, check_probes=False)
    engine = ready_engine(served, settings)
    peft = _peft(open_base(wanted.model, wanted.folder, device=wanted.device), adapters)
    bandwidth = read_bandwidth(wanted.device)
    return [_measure_rows(engine, peft, adapters[:count], wanted, bandwidth) for count in wanted.rows]


def _measure_rows(
    engine: Engine, peft: PeftModel, adapters: list[Path], wanted: DecodeSettings, bandwidth: float
) -> Result:
    count, tokens = len(adapters), wanted.tokens
    contenders: dict[str, Callable[[], float]] = {
        "base": lambda: decode_seconds(engine, [None] * count, tokens),
        "same": lambda: decode_seconds(engine, [adapters[0]] * count, tokens),
        "mixed": lambda: decode_seconds(engine, list(adapters), tokens),
        "peft": lambda: _peft_seconds(peft, adapters, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(wanted.repeats + 1):
        for name, run in contenders.items():
            taken = run()
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    file_bytes = sum((folder / "adapter_model.safetensors").stat().st_size for folder in adapters)  # float32
    size = file_bytes * wanted.adapter_bits / 32
    return Result(
        rows=count,
        base_tokens_per_s=count * tokens / median["base"],
        same_tokens_per_s=count * tokens / median["same"],
        mixed_tokens_per_s=count * tokens / median["mixed"],
        peft_tokens_per_s=count * tokens / median["peft"],
        added_ms=1e3 * (median["mixed"] - median["base"]) / tokens,
        adapter_read_ms=1e3 * size / bandwidth,
    )


def decode_seconds(engine: Engine, adapters: list[Path | None], tokens: int) -> float:
    """Seconds in which the engine generates `tokens` tokens for each row, after every row has its first."""
    uses = [() if folder is None else (AdapterUse(digest=folder.name, folder=str(folder)),) for folder in adapters]
    return decode_uses_seconds(engine, uses, tokens)


def decode_uses_seconds(engine: Engine, rows: Sequence[tuple[AdapterUse, ...]], tokens: int) -> float:
    """The same for rows that name their adapters by more than a folder."""
    for row, uses in enumerate(rows):
        sampling = Sampling(max_tokens=tokens + 1, temperature=0, ignore_eos=True)
        engine.add(
            Generate(
                request_id=f"{row}",
                tenant="t",
                prompt_token_ids=prompt_of(row, PROMPT_TOKENS),
                sampling=sampling,
                adapters=uses,
            )
        )
    started: set[str] = set()
    while len(started) < len(rows):
        started |= {output.request_id for output in engine.step()}
    begin = time.perf_counter()
    left = sum(tokens + 1 - len(request.generated) for request in engine.scheduler.running)
    expected = tokens * len(rows)
    while engine.has_work:
        engine.step()
    return (time.perf_counter() - begin) * expected / left


def _peft(base: Base, adapters: list[Path]) -> PeftModel:
    model = PeftModel.from_pretrained(base.model, adapters[0], adapter_name=adapters[0].name)
    for folder in adapters[1:]:
        model.load_adapter(folder, adapter_name=folder.name)
    model.eval()
    assert not any(layer.support_avx512bf16_for_cpu for layer in model.modules() if isinstance(layer, Linear4bit))
    return model


def _peft_seconds(model: PeftModel, adapters: list[Path], tokens: int) -> float:
    """Seconds of PEFT's mixed batch for the same tokens, without its first one."""
    ids = torch.tensor([prompt_of(row, PROMPT_TOKENS) for row in range(len(adapters))], device=model.device)
    names = [folder.name for folder in adapters]
    seconds = []
    for length in (1, tokens + 1):
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=names,
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=False,
                pad_token_id=0,
            )
        seconds.append(time.perf_counter() - begin)
    return seconds[1] - seconds[0]


def read_bandwidth(device: str) -> float:
    """Bytes per second at which the device's memory is read: the best of several sums over 512 MB."""
    block = torch.ones(128 * 1024 * 1024, dtype=torch.float32, device=device)
    return block.nbytes / least_seconds(block.sum)


def least_seconds(compute: Callable[[], torch.Tensor]) -> float:
    """The shortest of five runs, to the end of the device's work."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        compute().flatten()[:1].cpu()
        best = min(best, time.perf_counter() - begin)
    return best


def _print(model: str, results: list[Result]) -> None:
    table = Table(title=f"{model}: decode, rank {RANK} on every layer, tokens/s")
    for name in ("rows", "base", "same", "mixed", "mixed/base", "PEFT", "mixed/PEFT", "added ms", "read floor ms"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            str(r.rows),
            f"{r.base_tokens_per_s:.0f}",
            f"{r.same_tokens_per_s:.0f}",
            f"{r.mixed_tokens_per_s:.0f}",
            f"{r.mixed_tokens_per_s / r.base_tokens_per_s:.2f}",
            f"{r.peft_tokens_per_s:.0f}",
            f"{r.mixed_tokens_per_s / r.peft_tokens_per_s:.1f}x",
            f"{r.added_ms:.2f}",
            f"{r.adapter_read_ms:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
