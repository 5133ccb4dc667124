"""The method "switch": experts of a mixture in one model, with the gate that chooses among them for each token.

It does: attach published or local adapters and fresh ones side by side over the frozen base, decide which of them
train, and put the gate before the decoder.
It does not: find the experts (`origins`), compute (`gate`, `mixture_product`) or train (`loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from basemodel.load import Base
from basemodel.mixture_gate import normalized
from trainer.attention import use_float32_gradient
from trainer.encoding import Example
from trainer.forward import base_of
from trainer.gate import Gate
from trainer.job import Job
from trainer.methods import enable_checkpointing, give_origin, lora_config, origin_config
from trainer.mixture_product import use_mixture_product
from trainer.origins import Origin
from trainer.tuners import PeftModel, with_adapters


@dataclass(frozen=True)
class Switch:
    """A mixture under training: its gate, and its experts in the gate's order; of each, whether it trains."""

    gate: Gate
    experts: tuple[Origin, ...]
    trained: tuple[bool, ...]

    @property
    def begins_with_given(self) -> bool:
        """Whether every expert is one that can something already."""
        return all(expert.folder is not None for expert in self.experts)

    @staticmethod
    def name_of(place: int) -> str:
        """What PEFT calls the expert at this place."""
        return f"expert{place}"


def attach_mixture(
    base: Base, experts: Sequence[Origin], job: Job, rows: Sequence[Example], *, checkpointing: bool
) -> tuple[PeftModel, Switch]:
    """Wrap `base.model` with all experts and a new gate, which begins from torch's random state.

    `rows` are those of the training: their mean is the gate's center. Raises MethodError.
    """
    names = tuple(Switch.name_of(place) for place in range(len(experts)))
    trained = tuple(expert.folder is None or job.mixture.train_experts for expert in experts)
    configs = {
        name: lora_config(base, job.adapter) if expert.folder is None else origin_config(base, expert)
        for name, expert in zip(names, experts, strict=True)
    }
    base.model.requires_grad_(False)
    model = with_adapters(base.model, configs)
    for name, expert, trains in zip(names, experts, trained, strict=True):
        if expert.folder is not None:
            give_origin(model, expert, name)
        _let_train(model, name, trains=trains)
    embedding = base.model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    center = _mean_input(embedding, rows)
    gate = Gate(len(experts), embedding, job.mixture, center=center).to(embedding.device)
    model.add_module("gate", gate)
    gate.watch(base_of(model).base_model)
    use_mixture_product(model, names, gate)
    use_float32_gradient(base.model)
    if checkpointing:
        enable_checkpointing(base.model)
    return model, Switch(gate, tuple(experts), trained)


def _mean_input(embedding: torch.Tensor, rows: Sequence[Example]) -> torch.Tensor:
    """The mean [H] of what a gate reads, over all tokens of the rows."""
    counts = np.bincount(np.concatenate([row.token_ids for row in rows]), minlength=len(embedding))
    ids = torch.from_numpy(np.flatnonzero(counts)).to(embedding.device)
    shares = torch.from_numpy(counts[counts > 0] / counts.sum()).to(embedding.device)
    inputs = normalized(embedding[ids])
    return (shares[:, None] * inputs).sum(dim=0).float()


def _let_train(model: PeftModel, adapter: str, *, trains: bool) -> None:
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.requires_grad_(trains)
