"""Step 1 of the demo: make each task's data, and train its adapter as `loraplex train` would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import ceil
from pathlib import Path

import torch

from basemodel.description import BaseDescription
from basemodel.snapshot import prepare_snapshot
from basemodel.source import EMBEDDED
from loraplex.demo.plan import AdapterPlan, DemoPlan
from loraplex.demo.progress import TrainingProgress
from loraplex.demo.tasks import write_jsonl
from loraplex.demo.workers import run_side_by_side
from trainer.job import Job


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter folder, ready to be published."""

    plan: AdapterPlan
    folder: Path
    base: BaseDescription


def train_adapters(plan: DemoPlan, home: Path, progress: TrainingProgress, cores: int) -> list[TrainedAdapter]:
    """Train every adapter of the plan: over the small embedded base on a CPU one run a core, else one after the other.

    Raises DemoError where a run fails, and the errors of basemodel.
    """
    prepare_snapshot(plan.base, cache_dir=home / "bases")  # once, before the runs ask for it side by side
    runs = home / "runs" / datetime.now().astimezone().strftime("demo-%Y%m%d-%H%M%S")
    jobs = [training_job(plan, adapter, runs) for adapter in plan.adapters]
    is_small = plan.base == EMBEDDED and not torch.cuda.is_available()
    most = min(cores, len(jobs)) if is_small else 1
    results = run_side_by_side(jobs, home, most=most, threads=max(1, cores // most), listener=progress.listener)
    return [
        TrainedAdapter(adapter, result.adapter_folder, result.base)
        for adapter, result in zip(plan.adapters, results, strict=True)
    ]


def training_job(plan: DemoPlan, adapter: AdapterPlan, runs: Path) -> Job:
    """The job of one adapter; writes its training data beside its run."""
    data = runs / f"{adapter.task.name}.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(adapter.task.train(plan.train_rows, plan.train_seed), data)
    return Job.from_values(
        {
            "name": adapter.task.name,
            "base": {"source": plan.base},
            "data": {"train": data},
            "adapter": {"method": "qlora", "r": plan.rank, "alpha": float(plan.rank)},
            "optimization": {
                "max_steps": adapter.train_steps,
                "batch_tokens": adapter.batch_tokens,
                "learning_rate": plan.learning_rate,
                "seed": plan.train_seed,
            },
            # The demo measures through the server, on data of its own; here only the best state is chosen.
            "evaluation": {
                "exact_match": False,
                "validation_fraction": plan.validation_rows / plan.train_rows,
                "every_steps": ceil(adapter.train_steps / plan.validations),
            },
            "output": {"run": runs / adapter.task.name},
        },
        origin="the demo",
    )
