"""What a run looks like while it runs: a live display on a terminal, a line now and then elsewhere.

It does: listen to a run's events. It prints to stderr, so that stdout holds the result alone.
It does not: print the result (`summary`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from trainer.events import (
    Event,
    Noticed,
    PhaseAdvanced,
    PhaseStarted,
    StepDone,
    StoppedEarly,
    TrainingStarted,
    Validated,
)

PLAIN_LINE_SECONDS = 10.0


class RunProgress:
    """The display of one run; a context manager, and the run's listener. Only the run's events change it."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._bars = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._validation = ""
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case PhaseStarted(title, total):
                self._begin(title, total)
            case PhaseAdvanced(done):
                self._update(done)
            case Noticed(text):
                self._say(f"note: {text}")
            case TrainingStarted():
                self._started(event)
            case StepDone():
                self._step(event)
            case Validated():
                self._validated(event)
            case StoppedEarly(step, best_step):
                self._say(f"stopped early after step {step}: nothing was better than step {best_step}")

    def _begin(self, title: str, total: int | None) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=total, figures="")
        if not self._console.is_terminal:
            self._say(title)

    def _update(self, done: int, figures: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, figures=figures)

    def _started(self, event: TrainingStarted) -> None:
        rows = f"{event.train_rows} rows to train, {event.validation_rows} to validate ({event.row_format})"
        resumed = f", resumed at step {event.first_step}" if event.first_step > 1 else ""
        recomputed = ", gradient checkpointing" if event.gradient_checkpointing else ""
        self._say(f"{rows}; {event.trainable_parameters:,} trainable parameters{recomputed}")
        self._begin("Training", event.steps)
        self._update(event.first_step - 1)
        if not self._console.is_terminal:
            self._say(f"{event.steps} steps into {event.run_folder}{resumed}")

    def _step(self, event: StepDone) -> None:
        speed = f"{event.tokens_per_s:,.0f} tok/s  {_duration(event.seconds_left)} left"
        figures = f"loss {event.loss:.4f}{self._validation}  {speed}"
        self._update(event.step, figures)
        due = self._clock() - self._last_line >= PLAIN_LINE_SECONDS
        if not self._console.is_terminal and (due or event.step == event.steps):
            self._last_line = self._clock()
            self._say(f"step {event.step}/{event.steps}  {figures}")

    def _validated(self, event: Validated) -> None:
        self._validation = f"  val {event.loss:.4f}"
        if not self._console.is_terminal:
            best = ", the best so far" if event.is_best else ""
            self._say(f"step {event.step}  validation loss {event.loss:.4f}{best}")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
