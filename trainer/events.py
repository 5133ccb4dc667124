"""What a run tells while it runs. The loop emits these; the command, the demo and the tests listen.

It does: define the events as values. It does not: print (`progress`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PhaseStarted:
    """The run turned to something that may take a while, such as loading the base. `total` is None if unknown."""

    title: str
    total: int | None = None


@dataclass(frozen=True)
class PhaseAdvanced:
    """`done` of the current phase's `total` are done."""

    done: int


@dataclass(frozen=True)
class Noticed:
    """Something about the data or the job that deserves a word and is no error."""

    text: str


@dataclass(frozen=True)
class TrainingStarted:
    """All is loaded and checked. `first_step` is above 1 in a resumed run."""

    run_folder: Path
    first_step: int
    steps: int
    train_rows: int
    validation_rows: int
    row_format: str
    trainable_parameters: int
    gradient_checkpointing: bool


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `loss` is per label token; `seconds_left` is of training, without the final evaluation."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    seconds_left: float


@dataclass(frozen=True)
class Validated:
    """A validation after `step` steps. `patience_left` is None without early stopping."""

    step: int
    loss: float
    is_best: bool
    patience_left: int | None


@dataclass(frozen=True)
class StoppedEarly:
    """No better validation loss was found for as long as the job allows."""

    step: int
    best_step: int


Event = PhaseStarted | PhaseAdvanced | Noticed | TrainingStarted | StepDone | Validated | StoppedEarly
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The listener that does nothing."""
