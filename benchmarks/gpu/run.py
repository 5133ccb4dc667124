"""Everything that waits for an NVIDIA GPU, in one run, with one table at its end.

Run from the repository's root on a machine with a GPU: `python -m benchmarks.gpu.run [--quick] [--out FOLDER]`

It does: run the tests of the Triton kernels, the tests marked `cuda`, and the benchmarks on the shape of Llama-3.1-8B
with and without captured steps, each as a process of its own with a limit, and print what each said, with hardware
and commit. The table and the JSON files are written after each part, so what was measured stays if the machine goes.
It does not: install anything. What the machine lacks (bitsandbytes, litestar, ...) must be importable, by PYTHONPATH
for example. A part that fails, hangs, dies or writes nonsense does not end the others; the exit status is then 1.
Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes")
MODEL = "8b"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
KERNEL_TESTS = (
    "tests/basemodel/test_cuda_lora.py",
    "tests/basemodel/test_cuda_attention.py",
    "tests/basemodel/test_joined_linear.py",
    "tests/basemodel/test_gpu_compiles.py",
    "tests/engine/test_gpu_path.py",
    "tests/engine/test_cuda_graphs.py",
)
SHOWN_LINES = 15


@dataclass(frozen=True)
class Step:
    """One part of the run: arguments of Python, and how long it may take."""

    name: str
    arguments: tuple[str, ...]
    limit_seconds: int
    writes_json: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a step. `summary` is its last line, or its figures."""

    step: Step
    status: str
    seconds: float
    summary: str


STEPS = (
    Step("kernels and engine", (*PYTEST, *KERNEL_TESTS), 300),
    Step("tests on CUDA", (*PYTEST, "-m", "cuda", "tests"), 600),
    *(
        Step(f"{name}, graphs {graphs}", ("-m", f"benchmarks.{module}", *options, "--cuda-graphs", graphs), 600, True)
        for name, module, options in (
            ("step and floor", "step_floor", ("--rows", "1,8")),
            ("different adapters", "serve_mixed", ("--rows", "1,8,32")),
            ("mixture of top 2", "mixture_decode", ()),
        )
        for graphs in ("on", "off")
    ),
    Step("an adapter from disk", ("-m", "benchmarks.cold_adapter"), 600, writes_json=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short benchmarks")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of logs and JSON files")
    parser.add_argument("--only", help="run the steps whose name holds this text")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU here (torch.cuda.is_available() is False): this script has nothing to measure")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in STEPS if options.only is None or options.only in step.name]
    facts = _facts()
    (options.out / "facts.json").write_text(json.dumps(facts, indent=1))
    outcomes: list[Outcome] = []
    for step in chosen:
        outcomes.append(_run(step, options.out, quick=options.quick))
        with (options.out / "table.txt").open("w") as file:
            _print(facts, outcomes, Console(width=140, file=file))
    _print(facts, outcomes, Console(width=140))
    return int(any(outcome.status != "ok" for outcome in outcomes))


def _run(step: Step, out: Path, *, quick: bool) -> Outcome:
    name = step.name.replace(",", "").replace(" ", "-")
    arguments = [sys.executable, *step.arguments]
    result = out / f"{name}.json"
    if step.writes_json:
        arguments += ["--model", MODEL, "--device", "cuda", "--json", str(result), *(["--quick"] if quick else [])]
    begin = time.perf_counter()
    with (out / f"{name}.log").open("wb") as log:
        try:
            code = subprocess.run(
                arguments, stdout=log, stderr=subprocess.STDOUT, timeout=step.limit_seconds, check=False
            ).returncode
            status = "ok" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            status = f"over {step.limit_seconds} s"
        except OSError as error:
            status = str(error)
    seconds = time.perf_counter() - begin
    lines = (out / f"{name}.log").read_text(errors="replace").splitlines()
    if status != "ok":
        print(f"--- {step.name}: {status}", *lines[-SHOWN_LINES:], sep="\n", flush=True)
    summary = lines[-1] if lines else ""
    if step.writes_json and status == "ok":
        try:
            summary = _figures(json.loads(result.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            status, summary = "no figures", f"{type(error).__name__}: {error}"
    return Outcome(step, status, seconds, summary)


def _figures(document: dict[str, Any]) -> str:
    """The rows of a benchmark's JSON, one line each; where it has none, its own numbers."""
    rows = document["rows"] if isinstance(document.get("rows"), list) else [document]
    return "\n".join(
        ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, int | float)) for row in rows
    )


def _facts() -> dict[str, str]:
    git = shutil.which("git") or "git"
    commit = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(0),
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
        "commit": commit.stdout.strip() or "unknown",
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print(facts: dict[str, str], outcomes: list[Outcome], console: Console) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = Table(title=f"on a GPU, model {MODEL}")
    for heading in ("step", "outcome", "seconds", "figures"):
        table.add_column(heading)
    for outcome in outcomes:
        table.add_row(outcome.step.name, outcome.status, f"{outcome.seconds:.0f}", outcome.summary)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
