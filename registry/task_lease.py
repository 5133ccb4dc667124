"""Which process does a task of the upkeep, when it was done last, and when it is due again.

Any number of servers may share a registry; one of them does a task at a time. It holds the task for two minutes and
renews that while it works; if it dies, another one takes the task over. The state is one row of `registry_meta`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from registry import locks
from registry.database import Database
from registry.errors import RegistryError
from registry.models import MetaRow
from registry.task_state import TaskState

HOLD = timedelta(minutes=2)
RENEW_SECONDS = 30.0
FAILURE_CHARACTERS = 500
_KEY_PREFIX = "upkeep:"
_TIMES = ("held_until", "started_at", "ended_at", "due_at")

logger = logging.getLogger(__name__)


class TaskLeases:
    """The states of all tasks. Holds no state but the database; each method is a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self, task: str) -> TaskState:
        """What is known of the task now."""
        with self._database.reading() as session:
            return _read(session, task)

    def claim(self, task: str, now: datetime, *, only_due: bool) -> str | None:
        """Take the task for this process; the name under which it is held, None where somebody else is at it.

        With `only_due`, None also where it is not to be done yet.
        """
        with self._database.writing() as session:
            locks.hold(session, locks.Lock.UPKEEP)
            state = _read(session, task)
            if state.is_held(now) or (only_due and not state.is_due(now)):
                return None
            holder = f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"
            _write(session, replace(state, holder=holder, held_until=now + HOLD, started_at=now))
            return holder

    @contextmanager
    def renewed(self, task: str, holder: str) -> Iterator[None]:
        """Keep the task while the block runs, from a thread of its own."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEW_SECONDS):
                try:
                    self._renew(task, holder)
                except RegistryError as error:
                    logger.warning("upkeep: the hold on %s cannot be renewed: %s", task, error)

        thread = threading.Thread(target=renew, name=f"loraplex-hold-{task}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def succeeded(self, task: str, holder: str, *, report: dict[str, int], seconds: float, due_at: datetime) -> None:
        """It is done, and is due again then."""
        done: dict[str, Any] = {"report": report, "seconds": round(seconds, 3), "failures": 0, "failure": None}
        self._conclude(task, holder, {**done, "due_at": due_at})

    def failed(self, task: str, holder: str, *, failure: str, first_pause: timedelta, longest_pause: timedelta) -> None:
        """It was not done; it is due again after a pause that doubles with each failure."""
        failures = self.state(task).failures + 1
        pause = min(first_pause * 2 ** min(failures - 1, 20), longest_pause)
        changes = {"failures": failures, "failure": failure[:FAILURE_CHARACTERS], "due_at": datetime.now(UTC) + pause}
        self._conclude(task, holder, changes)

    def _renew(self, task: str, holder: str) -> None:
        with self._database.writing() as session:
            locks.hold(session, locks.Lock.UPKEEP)
            state = _read(session, task)
            if state.holder == holder:
                _write(session, replace(state, held_until=datetime.now(UTC) + HOLD))

    def _conclude(self, task: str, holder: str, changes: dict[str, Any]) -> None:
        with self._database.writing() as session:
            locks.hold(session, locks.Lock.UPKEEP)
            state = _read(session, task)
            if state.holder == holder:  # else it took too long, and another process has it
                _write(session, replace(state, holder=None, held_until=None, ended_at=datetime.now(UTC), **changes))


def _read(session: Session, task: str) -> TaskState:
    row = session.get(MetaRow, _KEY_PREFIX + task, populate_existing=True)
    document: dict[str, Any] = {} if row is None else json.loads(row.value)
    for name in _TIMES:
        if document.get(name) is not None:
            document[name] = datetime.fromisoformat(document[name])
    return TaskState(task=task, **document)


def _write(session: Session, state: TaskState) -> None:
    document = {name: value for name, value in asdict(state).items() if name != "task" and value is not None}
    for name in _TIMES:
        if name in document:
            document[name] = document[name].isoformat()
    session.merge(MetaRow(key=_KEY_PREFIX + state.task, value=json.dumps(document, sort_keys=True)))
    session.flush()
