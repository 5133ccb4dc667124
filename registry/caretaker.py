"""The caretaker: does the registry's upkeep when it is due, in a thread of a server.

Every server has one; the database decides which of them does a task (`upkeep.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from registry.errors import RegistryError
from registry.task_run import TaskRun
from registry.upkeep import Upkeep

logger = logging.getLogger(__name__)

OnRun = Callable[[TaskRun], None]
"""Told of each run of a task, on the caretaker's thread."""


@dataclass(frozen=True)
class CaretakerSettings:
    """How soon after the start, and how often, it looks for what is due; and how long stopping waits for a task."""

    first_seconds: float = 60.0
    poll_seconds: float = 15.0
    stop_seconds: float = 5.0


class Caretaker:
    """Looks after a registry until it is stopped."""

    def __init__(self, upkeep: Upkeep, on_run: OnRun, settings: CaretakerSettings) -> None:
        self._upkeep = upkeep
        self._on_run = on_run
        self._settings = settings
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the background."""
        assert self._thread is None, "a caretaker starts once"
        self._thread = threading.Thread(target=self._run, name="loraplex-caretaker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more, and wait a little for what is under way; ending in the middle of it breaks nothing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._settings.stop_seconds)

    def _run(self) -> None:
        pause_seconds = self._settings.first_seconds
        while not self._stopping.wait(pause_seconds):
            pause_seconds = self._settings.poll_seconds
            try:
                runs = self._upkeep.run_due()
            except RegistryError as error:
                logger.error("upkeep cannot be done: %s", error)
                continue
            for run in runs:
                self._on_run(run)
