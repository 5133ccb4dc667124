"""Answers from the database that hold exactly until something is committed, by whichever process (`changes.py`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from registry.changes import Stamp
from registry.database import Database

Key = TypeVar("Key")
Value = TypeVar("Value")


class FreshCache(Generic[Key, Value]):
    """Answers that hold until the database changes. Bounded; threads may share it. The lock owns all fields."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._answers: dict[Key, Value] = {}

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """The answer, computed where it is not known or may be out of date. What `compute` raises is not kept."""
        stamp = self._database.stamp()
        with self._lock:
            if stamp != self._stamp:
                self._answers.clear()
                self._stamp = stamp
            elif (known := self._answers.get(key)) is not None:
                return known
        value = compute()  # it reads no earlier than the stamp was taken: at worst it is newer
        with self._lock:
            if stamp == self._stamp:
                if len(self._answers) >= self._limit:
                    self._answers.pop(next(iter(self._answers)))
                self._answers[key] = value
        return value

    def peek(self, key: Key) -> Value | None:
        """The answer if it is known and still holds."""
        stamp = self._database.stamp()
        with self._lock:
            return self._answers.get(key) if stamp == self._stamp else None

    def __len__(self) -> int:
        return len(self._answers)
