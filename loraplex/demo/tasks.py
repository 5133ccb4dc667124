"""The three demo tasks as data sets: questions to SQL, log lines to JSON, schedules to cron.

Generates everything from a seed; reads no files and no network. Training and held-out rows share no schema (text2sql),
no host, address, path or message (log2json) and no cron expression (text2cron). Knows nothing of models.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from loraplex.demo.cron_task import draw_schedule
from loraplex.demo.example import Example, Side
from loraplex.demo.log_task import draw_log_line
from loraplex.demo.sql_task import draw_question

__all__ = ["TASKS", "DemoTask", "Example", "task_named", "write_jsonl"]


@dataclass(frozen=True)
class DemoTask:
    """A task that the base cannot do and a small adapter can."""

    name: str
    title: str
    description: str
    draw: Callable[[Random, Side], Example]

    def train(self, rows: int, seed: int) -> list[Example]:
        """Distinct training examples; the same rows and seed give the same list."""
        return self._distinct(rows, seed, Side.TRAIN)

    def held_out(self, rows: int, seed: int) -> list[Example]:
        """Distinct examples about schemas, values or schedules that no training example has, whatever the seed."""
        return self._distinct(rows, seed, Side.HELD_OUT)

    def _distinct(self, rows: int, seed: int, side: Side) -> list[Example]:
        rng = Random(f"{self.name}/{side.value}/{seed}")  # noqa: S311 (data, not secrets)
        found: dict[str, Example] = {}
        for _ in range(200 * rows + 1000):
            if len(found) == rows:
                return list(found.values())
            example = self.draw(rng, side)
            found.setdefault(example.prompt, example)
        raise ValueError(f"{self.name} has too few distinct {side.value} examples for {rows} rows; ask for fewer")


TASKS: tuple[DemoTask, ...] = (
    DemoTask(
        "text2sql",
        "Question to SQL",
        "A question over one or two tables whose columns are listed in the prompt, answered with one SQLite query.",
        draw_question,
    ),
    DemoTask(
        "log2json",
        "Log line to JSON",
        "A syslog, nginx, application or key=value log line, answered with a JSON object of fixed key order.",
        draw_log_line,
    ),
    DemoTask(
        "text2cron",
        "Schedule to cron",
        "A schedule in English, answered with the five fields of a cron expression.",
        draw_schedule,
    ),
)
"""All demo tasks."""


def task_named(name: str) -> DemoTask:
    """The task of that name; KeyError with the known names if there is none."""
    for task in TASKS:
        if task.name == name:
            return task
    raise KeyError(f"no demo task {name!r}; there are {', '.join(task.name for task in TASKS)}")


def write_jsonl(examples: Iterable[Example], path: Path) -> None:
    """Write one chat a line: {"messages": [..., {"role": "assistant", "content": completion}]}."""
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            messages = [*example.messages, {"role": "assistant", "content": example.completion}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
