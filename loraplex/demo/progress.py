"""Progress bars of the demo: live on a terminal, a line now and then elsewhere.

It does: listen to a training run's events, and count answered requests. It does not: print results (`report`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.events import Event, Listener, PhaseStarted, StepDone

PLAIN_LINES_PER_RUN = 4


class TrainingProgress:
    """One bar per adapter. Mutable; driven by the training loop's events, in the order of training."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("   {task.description:10}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._rows = {name: self._bars.add_task(name, total=None, start=False, figures="") for name in names}

    @contextmanager
    def shown(self) -> Iterator[TrainingProgress]:
        """Draw the bars while inside."""
        with self._bars:
            yield self

    def listener(self, name: str) -> Listener:
        """What a run's events are given to."""
        row = self._rows[name]
        began: list[float] = []

        def listen(event: Event) -> None:
            began[:1] = began[:1] or [time.perf_counter()]
            if isinstance(event, PhaseStarted):
                self._bars.update(row, figures=f"[dim]{event.title}[/]")
            elif isinstance(event, StepDone):
                self._step(name, row, event, seconds=time.perf_counter() - began[0])

        return listen

    def _step(self, name: str, row: TaskID, event: StepDone, seconds: float) -> None:
        figures = f"loss {event.loss:6.3f}  {event.tokens_per_s:6,.0f} tok/s"
        left = f"{event.seconds_left:3.0f} s left" if event.step < event.steps else f"{seconds:3.0f} s"
        if event.step == 1:
            self._bars.start_task(row)
        self._bars.update(row, total=event.steps, completed=event.step, figures=f"{figures}  {left}")
        is_due = event.step % max(1, event.steps // PLAIN_LINES_PER_RUN) == 0 or event.step == event.steps
        if not self._console.is_terminal and is_due:
            self._console.print(f"   {name:10} step {event.step:4}/{event.steps}  {figures}  {left}")


@contextmanager
def counted(console: Console, title: str, total: int) -> Iterator[Progress]:
    """A bar for `total` things; inside, advance its one task (`progress.advance(progress.task_ids[0])`)."""
    bar = Progress(
        TextColumn("   {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        bar.add_task(title, total=total)
        yield bar
