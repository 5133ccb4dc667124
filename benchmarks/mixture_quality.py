"""How well one mixture answers for its experts: each kind of question, without being told which kind it is.

    python -m benchmarks.mixture_quality --experts FOLDER FOLDER FOLDER [--steps 40] [--json FILE] [--quick]

The demo's three tasks (questions to SQL, log lines to JSON, schedules to cron) and an adapter folder for each, in that
order, as `loraplex demo` trains them. For each way to choose experts a mixture is trained over the adapters on rows of
all three tasks, mixed and without labels; then the engine answers held-out rows greedily, and answers are counted that
are right to the letter. Every specialist is measured on its own rows, and on all rows through a mixture's model.

It does: train mixtures, measure and print one table. It does not: train specialists (`loraplex demo` does).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.served_answers import ServedAnswers
from loraplex.demo.tasks import TASKS, write_jsonl
from serving.messages import AdapterUse
from trainer.encoding import Example
from trainer.job import Job
from trainer.loop import run_job
from trainer.origins import digest_of_folder

TRAIN_SEED, HELD_OUT_SEED = 11, 12  # the demo's own are 1 and 2
FROZEN = {"train_experts": False}
WAYS: dict[str, dict[str, Any]] = {
    "top 1": {"top_k": 1},
    "top 2": {"top_k": 2},
    "top 1, decay 0.99": {"top_k": 1, "gate_decay": 0.99},
    "top 2, decay 0.99": {"top_k": 2, "gate_decay": 0.99},
    "top 1, decay 0.9": {"top_k": 1, "gate_decay": 0.9},
    "top 1, token": {"top_k": 1, "gate_context": "token"},
    "top 2, token": {"top_k": 2, "gate_context": "token"},
    "frozen, top 1": {"top_k": 1, **FROZEN},
    "frozen, top 2": {"top_k": 2, **FROZEN},
    "frozen, top 2, decay 0.99": {"top_k": 2, "gate_decay": 0.99, **FROZEN},
    "frozen, top 2, token": {"top_k": 2, "gate_context": "token", **FROZEN},
}


@dataclass(frozen=True)
class Measured:
    """One way to choose: right answers by task, seconds of training, and each expert's share of the tokens."""

    way: str
    right: dict[str, float]
    train_seconds: float
    shares: tuple[float | None, ...]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs=len(TASKS), type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--home", type=Path, default=Path("~/.loraplex/benchmarks").expanduser())
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, help="of experts that train; unset: the trainer's own")
    parser.add_argument("--train-rows", type=int, default=1500, help="of each task")
    parser.add_argument("--rows", type=int, default=200, help="held-out rows of each task")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one way, few rows")
    arguments = parser.parse_args()
    rows, ways = (20, ["top 1"]) if arguments.quick else (arguments.rows, arguments.ways)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        values = job_values(arguments.experts, place, steps=arguments.steps, train_rows=arguments.train_rows)
        answers = ServedAnswers(arguments.home / "bases")
        asked = {task.name: answers.rows(task, rows, HELD_OUT_SEED, place) for task in TASKS}
        specialists = {
            name: answers.right(_plain(expert), asked[name])
            for name, expert in zip(asked, arguments.experts, strict=True)
        }
        print_specialists(specialists)
        measured = []
        for way in ways:
            run = trained_values(way, values, place, arguments.learning_rate)
            measured.append(measure_way(way, run, arguments.home, answers, asked))
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
        "evaluation": {"exact_match": False, "validation_fraction": 0.02, "every_steps": max(1, steps // 2)},
    }


def trained_values(way: str, values: dict[str, Any], place: Path, learning_rate: float | None) -> dict[str, Any]:
    """The job of one way, in a run folder of its own."""
    values = {**values, "mixture": {**values["mixture"], **WAYS[way]}}
    if learning_rate is not None and WAYS[way].get("train_experts", True):
        values["optimization"] = {**values["optimization"], "learning_rate": learning_rate}
    return {**values, "output": {"run": place / way.replace(" ", "-")}}


def measure_way(
    way: str, values: dict[str, Any], home: Path, answers: ServedAnswers, asked: dict[str, tuple[Example, ...]]
) -> Measured:
    """Train a mixture and ask it the rows of every task."""
    began = time.perf_counter()
    result = run_job(Job.from_values(values), home=home)
    seconds = time.perf_counter() - began
    folders = [expert.folder for expert in result.experts]
    mixture = AdapterUse(
        digest=digest_of_folder(result.adapter_folder),
        folder=str(result.adapter_folder),
        experts=tuple(_plain(folder) for folder in folders if folder is not None),
    )
    right = {name: answers.right(mixture, examples) for name, examples in asked.items()}
    return Measured(way, right, round(seconds, 1), tuple(expert.share for expert in result.experts))


def _plain(folder: Path) -> AdapterUse:
    return AdapterUse(digest=digest_of_folder(folder), folder=str(folder))


def print_specialists(specialists: dict[str, float]) -> None:
    """The head of the table, and what to come near to."""
    print(f"{'right answers':28}" + "".join(f"{name:>12}" for name in specialists) + f"{'worst':>9}{'train s':>9}")
    print(f"{'each specialist':28}" + "".join(f"{share:>12.1%}" for share in specialists.values()), flush=True)


def print_way(each: Measured, specialists: dict[str, float]) -> None:
    """One line: the shares, and the points by which the worst task is behind its specialist."""
    worst = min(each.right[name] - share for name, share in specialists.items())
    cells = "".join(f"{each.right[name]:>12.1%}" for name in specialists)
    print(f"{each.way:28}{cells}{100 * worst:>+9.1f}{each.train_seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
