"""The manifest `loraplex.json`: where an adapter comes from, and what it was measured to do.

It does: collect what a reader needs to trust or repeat a training run. It does not: write files (`export`).
Nothing in it names a path, a user or a host: the same job on two machines differs in `seconds` and `hardware` alone.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from basemodel.description import BaseDescription
from trainer.data import JobData
from trainer.evaluate import Metrics
from trainer.job import Job
from trainer.probes import Probe

SCHEMA = 1
RECORDED_PACKAGES = ("loraplex", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")


@dataclass(frozen=True)
class TrainingRecord:
    """The facts of a finished run that only the loop knows. `best_step` is the step whose adapter is exported."""

    job: Job
    data: JobData
    steps: int
    best_step: int
    stopped_early: bool
    label_tokens: int
    seconds: float
    hardware: str
    gradient_checkpointing: bool
    truncated_rows: int
    dropped_rows: int


def build_manifest(
    record: TrainingRecord,
    base: BaseDescription,
    *,
    base_metrics: Metrics | None,
    adapter_metrics: Metrics | None,
    probes: tuple[Probe, ...],
    parent: str | None = None,
    mixture: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest as plain values. Metrics are empty where there were no validation rows.

    `parent` is the digest of the version that the training went on from; `mixture` says what a mixture is made of.
    """
    described = base.to_json()
    return {
        "schema": SCHEMA,
        "base": {key: described[key] for key in ("name", "revision", "fingerprint", "quantization")},
        "training": {
            "method": record.job.adapter.method,
            "data": _data(record),
            "job": record.job.to_json(),
            "seed": record.job.optimization.seed,
            "steps": record.steps,
            "best_step": record.best_step,
            "stopped_early": record.stopped_early,
            "label_tokens": record.label_tokens,
            "gradient_checkpointing": record.gradient_checkpointing,
            "seconds": round(record.seconds, 1),
            "hardware": record.hardware,
            "versions": versions(),
            **({} if mixture is None else {"mixture": mixture}),
        },
        "metrics": {
            "base": base_metrics.to_json() if base_metrics else {},
            "adapter": adapter_metrics.to_json() if adapter_metrics else {},
        },
        "parent": parent,
        "probes": [probe.to_json() for probe in probes],
    }


def versions() -> dict[str, str]:
    """What computed the adapter."""
    return {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}}


def hardware_of(device: torch.device) -> str:
    """The device by its product name, never by a host's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _data(record: TrainingRecord) -> dict[str, Any]:
    data = record.data
    files = {"train": data.train_file, "validation": data.validation_file}
    return {
        "digest": data.digest,
        "train_rows": len(data.train_rows),
        "validation_rows": len(data.validation_rows),
        "validation_rows_also_in_training": data.overlapping_rows,
        "truncated_rows": record.truncated_rows,
        "dropped_rows": record.dropped_rows,
        "files": {
            side: {"name": file.path.name, "sha256": file.sha256, "format": file.format}
            for side, file in files.items()
            if file is not None
        },
    }
