"""The command line that the benchmarks of decoding share: options, the quick form, a table, and JSON.

It does not: measure, or know what a result holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workload import MODELS
from serving.messages import EngineSettings

PROMPT_TOKENS = 32
GRAPH_BYTES = 8 << 30


@dataclass(frozen=True)
class DecodeSettings:
    """What to measure, and on what. `adapter_bits`: 8 where their values are on the grid of `basemodel.eight_bits`."""

    model: str
    rows: list[int]
    tokens: int
    repeats: int
    device: str
    folder: Path
    cuda_graphs: bool
    adapter_bits: int

    def engine_settings(self, **more: Any) -> EngineSettings:
        """An engine with room for the most rows, each of PROMPT_TOKENS and what it generates; `more` is its own."""
        return EngineSettings(
            socket="",
            base=self.model,
            bases_folder="",
            device=self.device,
            max_running=max(self.rows),
            cuda_graph_bytes=GRAPH_BYTES if self.cuda_graphs else 0,
            kv_cache_tokens=max(self.rows) * (PROMPT_TOKENS + self.tokens + 32),
            **more,
        )


def run_decode_benchmark(
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    rows: str,
    tokens: int,
    measure: Callable[[DecodeSettings], list[Any]],
    show: Callable[[str, list[Any]], None],
) -> None:
    """Parse `arguments` (None: those of the command line), `measure`, `show`, and write JSON where it is asked for.

    `measure` returns one dataclass for each number of rows. `rows` and `tokens` are what holds without an option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--rows", default=rows, help="numbers of concurrent requests")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens generated per request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cuda-graphs", choices=("on", "off"), default="on", help="captured steps, on a GPU")
    parser.add_argument("--adapter-bits", type=int, choices=(8, 16), default=16, help="in which adapters are held")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".loraplex" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="8 rows, 16 tokens, 2 repeats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.tokens, options.repeats = "8", 16, 2
    results = measure(
        DecodeSettings(
            model=options.model,
            rows=[int(number) for number in options.rows.split(",")],
            tokens=options.tokens,
            repeats=options.repeats,
            device=options.device,
            folder=options.folder,
            cuda_graphs=options.cuda_graphs == "on",
            adapter_bits=options.adapter_bits,
        )
    )
    show(options.model, results)
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": [asdict(result) for result in results]}))
