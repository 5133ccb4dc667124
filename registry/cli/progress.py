"""Progress bars of uploads, downloads and walks over blobs, on a terminal only; they go to stderr and leave nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from registry.printable import printable

if TYPE_CHECKING:
    from registry.remote.transfer import Progress as ProgressListener


def progress_of(ctx: click.Context | None) -> ProgressListener | None:
    """Bars for the running command, which end with it; None where nobody would see them."""
    console = Console(stderr=True)
    if ctx is None or not console.is_terminal:
        return None
    bars = Bars(console)
    ctx.call_on_close(bars.close)
    return bars


@contextmanager
def counted(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for the block, told how many of how many are done; None where nobody would see it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, count: progress.update(task, completed=done, total=count)


class Bars:
    """One bar for each file that passes. Mutable; threads may share it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, passed_bytes: int, size: int) -> None:
        """Move the file's bar; when none moves any more, the terminal is free again."""
        with self._lock:
            if not self._progress.live.is_started:
                self._progress.start()
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(printable(name), total=size)
            self._progress.update(self._tasks[name], completed=passed_bytes)
            if self._progress.finished:
                self._progress.stop()

    def close(self) -> None:
        """End the bars."""
        with self._lock:
            self._progress.stop()
