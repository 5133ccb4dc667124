"""Everything that a run needs before its first step, made from a job.

It does: check the data, load the base, tokenize, attach the adapter and plan the steps.
It does not: step (`loop`). The data is read and checked before the base is loaded: a wrong line costs no waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from basemodel.load import Base, load_base
from trainer.batches import BatchLimit, RunPlan
from trainer.checkpoint import RunIdentity, adapter_tensors, is_of_gate
from trainer.data import JobData
from trainer.encoding import EncodedRows, Example, encode_rows
from trainer.errors import JobError
from trainer.estimate import wants_checkpointing
from trainer.evaluate import spread
from trainer.job import Job
from trainer.methods import attach_adapter, target_modules
from trainer.origins import Origin
from trainer.switch import Switch, attach_mixture
from trainer.tuners import PeftModel

VALIDATIONS_PER_RUN = 10
CLOSEST_VALIDATIONS_STEPS = 10


@dataclass(frozen=True)
class PreparedRun:
    """A run that can begin. `model` and `optimizer` are the only parts that change, and only the loop changes them.

    `switch` is there where the run makes a mixture; its gate is part of `model`.
    """

    job: Job
    data: JobData
    base: Base
    model: PeftModel
    optimizer: torch.optim.AdamW
    train: EncodedRows
    validation: tuple[Example, ...]
    plan: RunPlan
    every_steps: int
    gradient_checkpointing: bool
    notices: tuple[str, ...]
    origins: tuple[Origin, ...] = ()
    switch: Switch | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.base.model.device

    @property
    def validation_limit(self) -> BatchLimit:
        """The bound of a forward without gradients: that of training."""
        return self.plan.limit

    @property
    def identity(self) -> RunIdentity:
        """What a resumed run must agree with."""
        return RunIdentity(
            self.job.to_json(),
            self.data.digest,
            self.base.description.fingerprint,
            [origin.digest for origin in self.origins],
        )

    @property
    def parent(self) -> str | None:
        """The digest of the version from which one adapter's training goes on."""
        return self.origins[0].digest if self.origins and self.switch is None else None


def prepare_run(job: Job, data: JobData, *, cache_dir: Path, origins: Sequence[Origin] = ()) -> PreparedRun:
    """Load the base and get all ready. Uses torch's random state for the start of what is new."""
    base = load_base(job.base.source, mode=job.mode, cache_dir=cache_dir, device=_device(job))
    limit_tokens = _row_limit(job, base)
    train = encode_rows(data.train_file, data.train_rows, base.tokenizer, job.data, limit_tokens=limit_tokens)
    notices = [*data.notices, *train.notices]
    validation: tuple[Example, ...] = ()
    if data.validation_file is not None:
        rows = tuple(spread(data.validation_rows, most=job.evaluation.loss_rows))
        encoded = encode_rows(data.validation_file, rows, base.tokenizer, job.data, limit_tokens=limit_tokens)
        validation = encoded.examples
        notices += [notice for notice in encoded.notices if notice not in notices]
    # Rows of one domain have similar lengths: batches by length would teach a gate one domain after the other.
    plan = RunPlan.of(train.examples, job.optimization, by_length=job.adapter.method != "switch")
    batch_tokens = max(plan.limit.tokens or 0, max(plan.lengths) * (plan.limit.rows or 1))
    checkpointing = wants_checkpointing(job, base, target_modules(base, job.adapter), batch_tokens=batch_tokens)
    switch: Switch | None = None
    if job.adapter.method == "switch":
        model, switch = attach_mixture(base, origins, job, train.examples, checkpointing=checkpointing)
    else:
        parent = origins[0] if origins else None
        model = attach_adapter(base, job.adapter, checkpointing=checkpointing, parent=parent)
    evenly = max(CLOSEST_VALIDATIONS_STEPS, -(-plan.steps // VALIDATIONS_PER_RUN))
    return PreparedRun(
        job=job,
        data=data,
        base=base,
        model=model,
        optimizer=_optimizer(job, model),
        train=train,
        validation=validation,
        plan=plan,
        every_steps=job.evaluation.every_steps or evenly,
        gradient_checkpointing=checkpointing,
        notices=tuple(notices),
        origins=tuple(origins),
        switch=switch,
    )


def _optimizer(job: Job, model: PeftModel) -> torch.optim.AdamW:
    """AdamW over adapters, and over a gate with its own rate: `rate_factor` times the learning rate of the step."""
    section = job.optimization
    tensors = adapter_tensors(model)
    gate = [tensor for name, tensor in tensors.items() if is_of_gate(name)]
    adapters = [tensor for name, tensor in tensors.items() if not is_of_gate(name)]
    factor = job.mixture.gate_rate / section.learning_rate
    groups = [{"params": adapters, "rate_factor": 1.0}, {"params": gate, "rate_factor": factor}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        fused=True,
    )


def _device(job: Job) -> str:
    available = torch.cuda.is_available()
    if job.base.device == "cuda" and not available:
        raise JobError('is "cuda", and torch sees no CUDA GPU here; set "auto" or "cpu"', key="base.device")
    return "cuda" if available and job.base.device != "cpu" else "cpu"


def _row_limit(job: Job, base: Base) -> int:
    context_tokens = base.description.context_tokens
    wanted = job.data.max_row_tokens
    if wanted is not None and wanted > context_tokens:
        reason = f"is {wanted}, and the context of {base.description.name} has {context_tokens} tokens"
        raise JobError(reason, key="data.max_row_tokens")
    return wanted or context_tokens
