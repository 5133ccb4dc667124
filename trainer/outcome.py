"""What a run has come to, before any of it is written.

It does: hold it together for the exports. It does not: measure (`conclusion`) or write (`export`, `mixture_export`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.evaluate import Metrics
from trainer.manifest import TrainingRecord
from trainer.preparation import PreparedRun
from trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """A trained model with its figures, and the `prompts` of its probes. Metrics are None without validation rows."""

    run: PreparedRun
    record: TrainingRecord
    base_metrics: Metrics | None
    adapter_metrics: Metrics | None
    prompts: list[list[int]]

    def private_paths(self, folder: RunFolder) -> tuple[Path, ...]:
        """What must not show in what others may read."""
        return folder.path, self.run.base.folder, self.run.data.train_file.path
