"""How well one mixture answers for its experts: each kind of question, without being told which kind it is.

    python -m benchmarks.mixture_quality --experts FOLDER FOLDER FOLDER [--steps 40] [--json FILE] [--quick]

The demo's three tasks (questions to SQL, log lines to JSON, schedules to cron) and an adapter folder for each, in that
order, as `loraplex demo` trains them. For each way to choose experts a gate is trained over the frozen adapters on rows
of all three tasks, mixed and without labels; then greedy answers to held-out rows are counted that are right to the
letter. Every specialist is measured on its own rows, and on all rows through a mixture's model.

It does: train gates, measure and print one table. It does not: train specialists (`loraplex demo` does).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basemodel.mixture_gate import read_mixture
from loraplex.demo.tasks import TASKS, DemoTask, write_jsonl
from trainer.data import read_data_file, read_job_data
from trainer.encoding import Example, encode_rows
from trainer.evaluate import exact_match
from trainer.job import Job
from trainer.loop import run_job
from trainer.origins import gathered_origins
from trainer.preparation import PreparedRun, prepare_run

TRAIN_SEED, HELD_OUT_SEED = 11, 12  # the demo's own are 1 and 2
EXPERTS_LEARNING_RATE = 3e-4
WAYS: dict[str, dict[str, Any]] = {
    "token": {"gate_context": "token"},
    "running mean": {},
    "running mean, decay 0.99": {"gate_decay": 0.99},
    "running mean, decay 0.9": {"gate_decay": 0.9},
    "running mean, top 1": {"top_k": 1},
    "experts train, top 1": {"top_k": 1, "train_experts": True},
    "experts train, top 2": {"train_experts": True},
}


@dataclass(frozen=True)
class Measured:
    """One way to choose: right answers by task, seconds of training, and each expert's share of the tokens."""

    way: str
    exact_match: dict[str, float]
    gate_seconds: float
    shares: tuple[float | None, ...]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs=len(TASKS), type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--home", type=Path, default=Path("~/.loraplex/benchmarks").expanduser())
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--train-rows", type=int, default=1500, help="of each task")
    parser.add_argument("--rows", type=int, default=200, help="held-out rows of each task")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one way, few rows")
    arguments = parser.parse_args()
    rows, ways = (20, ["running mean"]) if arguments.quick else (arguments.rows, arguments.ways)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        values = job_values(arguments.experts, place, steps=arguments.steps, train_rows=arguments.train_rows)
        specialists = measure_specialists(values, arguments.home, place, rows)
        print_specialists(specialists)
        measured = []
        for way in ways:
            measured.append(measure_way(way, values, arguments.home, place, rows))
            print_way(measured[-1], specialists)
    if arguments.json:
        document = {"steps": arguments.steps, "rows": rows, "specialists": specialists}
        arguments.json.write_text(json.dumps({**document, "mixtures": [asdict(each) for each in measured]}, indent=2))


def job_values(experts: Sequence[Path], place: Path, *, steps: int, train_rows: int) -> dict[str, Any]:
    """A job over mixed rows of all tasks; writes them."""
    mixed = [example for task in TASKS for example in task.train(train_rows, TRAIN_SEED)]
    random.Random(0).shuffle(mixed)
    write_jsonl(mixed, place / "mixed.jsonl")
    return {
        "data": {"train": place / "mixed.jsonl"},
        "adapter": {"method": "switch"},
        "mixture": {"experts": [str(folder.absolute()) for folder in experts]},
        "optimization": {"max_steps": steps, "batch_tokens": 1024},
        "evaluation": {"exact_match": False, "validation_fraction": 0.05, "every_steps": max(1, steps // 2)},
    }


def measure_specialists(values: dict[str, Any], home: Path, place: Path, rows: int) -> dict[str, float]:
    """Each specialist on the rows of its own task."""
    run = prepared({**values, "output": {"run": place / "unused"}}, home)
    assert run.switch is not None
    found = {}
    for number, task in enumerate(TASKS):
        with run.switch.gate.only(number):
            found[task.name] = right_answers(run, held_out(run, task, place, rows))
    return found


def measure_way(way: str, values: dict[str, Any], home: Path, place: Path, rows: int) -> Measured:
    """Train a gate and measure the mixture on the rows of every task."""
    run_folder = place / way.replace(" ", "-")
    values = {**values, "mixture": {**values["mixture"], **WAYS[way]}, "output": {"run": run_folder}}
    if "train_experts" in WAYS[way]:
        values["optimization"] = {**values["optimization"], "learning_rate": EXPERTS_LEARNING_RATE}
    began = time.perf_counter()
    result = run_job(Job.from_values(values), home=home)
    seconds = time.perf_counter() - began
    run = prepared(with_experts(values, [expert.folder for expert in result.experts if expert.folder]), home)
    assert run.switch is not None
    run.switch.gate.take(read_mixture(result.adapter_folder))
    found = {task.name: right_answers(run, held_out(run, task, place, rows)) for task in TASKS}
    return Measured(way, found, round(seconds, 1), tuple(expert.share for expert in result.experts))


def with_experts(values: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """The job over the experts that came of a training."""
    mixture = {**values["mixture"], "experts": [str(folder) for folder in folders], "train_experts": False}
    steps = {key: value for key, value in values["optimization"].items() if key != "learning_rate"}
    return {**values, "mixture": mixture, "optimization": steps}


def prepared(values: dict[str, Any], home: Path) -> PreparedRun:
    """The experts in one model with a gate that has not learned."""
    job = Job.from_values(values)
    with gathered_origins(job, home / "registry") as origins:
        return prepare_run(job, read_job_data(job), cache_dir=home / "bases", origins=origins)


def held_out(run: PreparedRun, task: DemoTask, place: Path, rows: int) -> tuple[Example, ...]:
    """Rows of one task that no training saw."""
    file = place / f"{task.name}.jsonl"
    write_jsonl(task.held_out(rows, HELD_OUT_SEED), file)
    data = read_data_file(file, run.job.data)
    limit_tokens = run.base.description.context_tokens
    return encode_rows(data, data.rows, run.base.tokenizer, run.job.data, limit_tokens=limit_tokens).examples


def right_answers(run: PreparedRun, examples: Sequence[Example]) -> float:
    """The share of greedy answers that are right to the letter."""
    ignore: Callable[[int], None] = lambda _done: None  # noqa: E731
    return exact_match(run.model, run.base.tokenizer, examples, on_rows=ignore)


def print_specialists(specialists: dict[str, float]) -> None:
    """The head of the table, and what to come near to."""
    print(f"{'right answers':28}" + "".join(f"{name:>12}" for name in specialists) + f"{'worst':>9}{'train s':>9}")
    print(f"{'each specialist':28}" + "".join(f"{share:>12.1%}" for share in specialists.values()), flush=True)


def print_way(each: Measured, specialists: dict[str, float]) -> None:
    """One line: the shares, and the points by which the worst task is behind its specialist."""
    worst = min(each.exact_match[name] - share for name, share in specialists.items())
    cells = "".join(f"{each.exact_match[name]:>12.1%}" for name in specialists)
    print(f"{each.way:28}{cells}{100 * worst:>+9.1f}{each.gate_seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
