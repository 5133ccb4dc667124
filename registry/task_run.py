"""A run of a task of the upkeep, and what it came to. What runs them is in `upkeep.py`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What is done."""

    GARBAGE = "garbage"
    HISTORY = "history"
    MIRRORS = "mirrors"


class Outcome(StrEnum):
    """What came of a task: done, failed, or somebody else is at it."""

    DONE = "done"
    FAILED = "failed"
    BUSY = "busy"


@dataclass(frozen=True)
class TaskRun:
    """One run of a task. `report` counts what it did; `failure` says why it did not."""

    task: Task
    outcome: Outcome
    seconds: float = 0.0
    report: dict[str, int] | None = None
    failure: str | None = None
