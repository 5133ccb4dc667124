"""When a task of the upkeep ran and will run. Who may run it is in `task_lease.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class TaskState:
    """What is known of one task. `holder` is set while it runs; `failures` counts those since it last succeeded.

    `seconds` and `report` are those of the last run that succeeded.
    """

    task: str
    holder: str | None = None
    held_until: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    due_at: datetime | None = None
    seconds: float | None = None
    report: dict[str, int] | None = None
    failures: int = 0
    failure: str | None = None

    def is_held(self, now: datetime) -> bool:
        """Whether some process is at it."""
        return self.holder is not None and self.held_until is not None and self.held_until > now

    def is_due(self, now: datetime) -> bool:
        """Whether it is to be done, and nobody is at it."""
        return not self.is_held(now) and (self.due_at is None or self.due_at <= now)
