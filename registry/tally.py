"""Counts what came of publishes and promotions through one open registry, over whichever face they came.

It is a process's own count, from zero: the audit log and the feed say what happened in all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from registry.errors import RejectedAdapterError

PUBLISHES = ("new", "known", "refused")
MOVES = ("promote", "rollback", "delete")


class Outcome(Protocol):
    """What came of a publish."""

    @property
    def is_new(self) -> bool:
        """Whether there was no such version."""


Published = TypeVar("Published", bound=Outcome)
Moved = TypeVar("Moved")


class Tally:
    """Publishes by outcome, and moves of aliases by kind. Threads share it; the registry that owns it counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._publishes: Counter[str] = Counter(dict.fromkeys(PUBLISHES, 0))
        self._moves: Counter[str] = Counter(dict.fromkeys(MOVES, 0))

    @property
    def publishes(self) -> Mapping[str, int]:
        """By outcome: `new` versions, adapters that are `known`, and those that were `refused` as no adapter."""
        with self._lock:
            return dict(self._publishes)

    @property
    def moves(self) -> Mapping[str, int]:
        """Of aliases, by kind."""
        with self._lock:
            return dict(self._moves)

    def publication(self, publish: Callable[[], Published]) -> Published:
        """Publish, and count what comes of it."""
        try:
            outcome = publish()
        except RejectedAdapterError:
            self.published("refused")
            raise
        self.published("new" if outcome.is_new else "known")
        return outcome

    def move(self, kind: str, promote: Callable[[], Moved]) -> Moved:
        """Move an alias or delete it, and count that."""
        moved = promote()
        assert kind in MOVES, kind
        with self._lock:
            self._moves[kind] += 1
        return moved

    def published(self, outcome: str) -> None:
        """An adapter was judged."""
        assert outcome in PUBLISHES, outcome
        with self._lock:
            self._publishes[outcome] += 1
