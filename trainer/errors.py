"""Every error of the trainer. Each says what is wrong, where, and what to do next; the fields are for programs.

TrainerError
├── JobError              a job file or flag that cannot be honoured
├── DataError             a data file, or one line of it, that cannot be trained on
│   └── LongRowError      a row longer than the limit while the policy is "error"
├── TemplateError         a chat template that the label mask cannot be built from
├── MethodError           an adapter that does not fit the base
├── RunFolderError        a run folder that is taken, or has nothing to resume
├── CheckpointError       a checkpoint that is damaged or belongs to another run
├── NonFiniteLossError    the loss or a gradient became NaN or infinite
├── ExportError           an adapter that would not be portable
└── InterruptedRunError   the run was stopped and can be resumed
"""

from __future__ import annotations

from pathlib import Path


class TrainerError(Exception):
    """Root of the trainer's errors; its text is ready to be shown to the user."""


class JobError(TrainerError):
    """A job that cannot be honoured. `key` is dotted (`optimization.epochs`), or None where the whole file is meant."""

    def __init__(self, reason: str, *, key: str | None = None, origin: str = "the job", suggestion: str | None = None):
        self.reason, self.key, self.origin, self.suggestion = reason, key, origin, suggestion
        where = f"{origin}: {key}" if key else origin
        hint = f" Did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{where}: {reason}{hint}")


class DataError(TrainerError):
    """A data file that cannot be trained on. `line` counts from 1 and is None where the whole file is meant."""

    def __init__(self, file: Path, reason: str, *, line: int | None = None):
        self.file, self.line, self.reason = file, line, reason
        where = f"{file}, line {line}" if line is not None else str(file)
        super().__init__(f"{where}: {reason}")


class LongRowError(DataError):
    """A row has more tokens than a row may have, and the policy is not to change rows silently."""

    def __init__(self, file: Path, *, line: int, row_tokens: int, limit_tokens: int, others: int):
        self.row_tokens, self.limit_tokens, self.others = row_tokens, limit_tokens, others
        more = f", and so have {others} other rows" if others else ""
        super().__init__(
            file,
            f"the row has {row_tokens} tokens, the limit is {limit_tokens}{more}. "
            'Set data.too_long to "truncate" (cut the end off) or "drop" (leave such rows out).',
            line=line,
        )


class TemplateError(TrainerError):
    """The base's chat template does not show where an assistant's turn begins or ends."""


class MethodError(TrainerError):
    """The adapter that the job describes does not fit the base."""


class RunFolderError(TrainerError):
    """The run folder is taken by another run, or holds none to resume."""

    def __init__(self, folder: Path, reason: str):
        self.folder, self.reason = folder, reason
        super().__init__(f"{folder}: {reason}")


class CheckpointError(TrainerError):
    """A checkpoint is damaged, or was written by a run with another job, data or base."""

    def __init__(self, folder: Path, reason: str):
        self.folder, self.reason = folder, reason
        super().__init__(f"{folder}: {reason}")


class NonFiniteLossError(TrainerError):
    """Training diverged. Nothing of the broken step was kept."""

    def __init__(self, *, step: int, what: str, value: float, learning_rate: float):
        self.step, self.what, self.value, self.learning_rate = step, what, value, learning_rate
        super().__init__(
            f"step {step}: the {what} is {value} at learning rate {learning_rate:g}. The last checkpoint is intact. "
            "Lower optimization.learning_rate or optimization.max_grad_norm, or raise optimization.warmup_ratio."
        )


class ExportError(TrainerError):
    """The adapter folder would not be portable, so it was not written."""


class InterruptedRunError(TrainerError):
    """The run was stopped between two steps after its state was written."""

    def __init__(self, *, run_folder: Path, step: int, steps: int):
        self.run_folder, self.step, self.steps = run_folder, step, steps
        super().__init__(
            f"stopped after step {step} of {steps}; the state is in {run_folder}. "
            "Give the same command with --resume to go on exactly where it stopped."
        )
