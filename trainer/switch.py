"""The method "switch": experts of a mixture in one model, with the gate that chooses among them for each token.

It does: attach published or local adapters and fresh ones side by side over the frozen base, decide which of them
train, and put the gate before the decoder.
It does not: find the experts (`experts`), compute (`gate`, `mixture_product`) or train (`loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from basemodel.adapter_weights import WEIGHTS_FILE, read_adapter
from basemodel.load import Base
from trainer.attention import use_float32_gradient
from trainer.errors import MethodError
from trainer.experts import Expert
from trainer.forward import base_of
from trainer.gate import Gate
from trainer.job import Job
from trainer.methods import enable_checkpointing, lora_config
from trainer.mixture_product import use_mixture_product
from trainer.tuners import LoraConfig, PeftModel, give_weights, read_config, with_adapters


@dataclass(frozen=True)
class Switch:
    """A mixture under training: its gate, and its experts in the gate's order; of each, whether it trains."""

    gate: Gate
    experts: tuple[Expert, ...]
    trained: tuple[bool, ...]

    @staticmethod
    def name_of(place: int) -> str:
        """What PEFT calls the expert at this place."""
        return f"expert{place}"


def attach_mixture(base: Base, experts: Sequence[Expert], job: Job, *, checkpointing: bool) -> tuple[PeftModel, Switch]:
    """Wrap `base.model` with all experts and a new gate, which begins from torch's random state. Raises MethodError."""
    names = tuple(Switch.name_of(place) for place in range(len(experts)))
    trained = tuple(expert.folder is None or job.mixture.train_experts for expert in experts)
    configs = {name: _config(base, expert, job) for name, expert in zip(names, experts, strict=True)}
    base.model.requires_grad_(False)
    model = with_adapters(base.model, configs)
    for name, expert, trains in zip(names, experts, trained, strict=True):
        if expert.folder is not None and not give_weights(model, load_file(expert.folder / WEIGHTS_FILE), name):
            raise MethodError(f"mixture.experts: {expert.name} has tensors that its own config does not mean")
        _let_train(model, name, trains=trains)
    embedding = base.model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    gate = Gate(len(experts), embedding, job.mixture).to(embedding.device)
    model.add_module("gate", gate)
    gate.watch(base_of(model).base_model)
    use_mixture_product(model, names, gate)
    use_float32_gradient(base.model)
    if checkpointing:
        enable_checkpointing(base.model)
    return model, Switch(gate, tuple(experts), trained)


def _config(base: Base, expert: Expert, job: Job) -> LoraConfig:
    if expert.folder is None:
        return lora_config(base, job.adapter)
    if expert.base_fingerprint not in (None, base.description.fingerprint):
        raise MethodError(
            f"mixture.experts: {expert.name} stands on base {expert.base_fingerprint}, "
            f"and this run on {base.description.fingerprint}"
        )
    read_adapter(expert.folder, base.description, torch.float32)  # judges it: what is attached is what is served
    config = read_config(expert.folder)
    kinds = {"use_dora": "DoRA", "modules_to_save": "whole modules", "trainable_token_indices": "trained tokens"}
    for setting, kind in kinds.items():
        if getattr(config, setting, None):
            raise MethodError(f"mixture.experts: {expert.name} has {kind}; an expert is plain LoRA on linear layers")
    if config.bias != "none" or config.lora_bias:
        raise MethodError(f"mixture.experts: {expert.name} has biases; an expert is plain LoRA on linear layers")
    config.base_model_name_or_path = None  # the file's name for the base; PEFT would warn of ours
    config.inference_mode = False
    config.lora_dropout = 0.0
    return config


def _let_train(model: PeftModel, adapter: str, *, trains: bool) -> None:
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.requires_grad_(trains)
