"""What a finished run hands back, and what `summary.json` holds.

It does: name the figures. It does not: print them (`progress`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basemodel.description import BaseDescription
from trainer.evaluate import Metrics
from trainer.rows import RowFormat


@dataclass(frozen=True)
class FinishedExpert:
    """An expert of a finished mixture. `folder` is None where it is a published version already.

    `share` is its part of the tokens of the validation rows by weight, None without such rows.
    """

    name: str
    digest: str
    folder: Path | None
    share: float | None


@dataclass(frozen=True)
class TrainingResult:
    """A finished run. The metrics are None where no rows were held out; `seconds` are of the steps alone.

    `experts` are those of a mixture in the gate's order; the adapter folder is then the mixture's.
    """

    name: str
    run_folder: Path
    adapter_folder: Path
    plot: Path
    base: BaseDescription
    base_metrics: Metrics | None
    adapter_metrics: Metrics | None
    row_format: RowFormat
    answers_chat: bool
    train_rows: int
    validation_rows: int
    steps: int
    best_step: int
    stopped_early: bool
    final_loss: float
    tokens: int
    label_tokens: int
    seconds: float
    tokens_per_s: float
    experts: tuple[FinishedExpert, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        metrics = {
            side: measured.to_json() if measured else None
            for side, measured in (("base", self.base_metrics), ("adapter", self.adapter_metrics))
        }
        return {
            "name": self.name,
            "run_folder": str(self.run_folder),
            "adapter_folder": str(self.adapter_folder),
            "plot": str(self.plot),
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "metrics": metrics,
            "format": self.row_format,
            "train_rows": self.train_rows,
            "validation_rows": self.validation_rows,
            "steps": self.steps,
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "final_loss": self.final_loss,
            "tokens": self.tokens,
            "label_tokens": self.label_tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_s": round(self.tokens_per_s, 1),
            **({"experts": [_expert(expert) for expert in self.experts]} if self.experts else {}),
        }


def _expert(expert: FinishedExpert) -> dict[str, Any]:
    return {**asdict(expert), "folder": None if expert.folder is None else str(expert.folder)}
