"""The methods: how an adapter is attached to a base so that it, and nothing else, trains.

It does: choose the modules, attach PEFT's LoRA layers in float32 over the frozen base, and switch on gradient
checkpointing. LoRA and QLoRA differ in the base they stand on, and in nothing else here.
It does not: use PEFT's `prepare_model_for_kbit_training`, which turns embeddings and norms to float32 and so trains
over another base than the one that is served. `Base.model` is changed in place: load a base for each run.
"""

from __future__ import annotations

import difflib

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from basemodel.adapter_parts import WEIGHTS_FILE
from basemodel.adapter_weights import read_adapter
from basemodel.load import Base
from basemodel.site_weights import SiteWeights
from trainer.attention import use_float32_gradient
from trainer.errors import MethodError
from trainer.job_sections import ALL_LINEAR, AdapterSection
from trainer.lora_product import use_served_product
from trainer.origins import Origin
from trainer.tuners import DEFAULT, LoraConfig, PeftModel, give_weights, read_config, with_adapter


def attach_adapter(
    base: Base, section: AdapterSection, *, checkpointing: bool, parent: Origin | None = None
) -> PeftModel:
    """Wrap `base.model` with `parent`, or with a new adapter that begins from torch's random state.

    Raises MethodError, and AdapterFormatError of a parent that does not fit the base.
    """
    config = lora_config(base, section) if parent is None else origin_config(base, parent, dropout=section.dropout)
    base.model.requires_grad_(False)
    model = with_adapter(base.model, config)
    if parent is not None:
        give_origin(model, parent)
    use_served_product(model)
    use_float32_gradient(base.model)
    if checkpointing:
        enable_checkpointing(base.model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), f"{name}: only the adapter may train"
        assert not parameter.requires_grad or parameter.dtype == torch.float32, f"{name} does not train in float32"
    return model


def lora_config(base: Base, section: AdapterSection) -> LoraConfig:
    """What PEFT is told of a new adapter. Raises MethodError."""
    modules = target_modules(base, section)
    return LoraConfig(
        r=section.r,
        lora_alpha=_whole_if_possible(section.alpha),
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        target_modules=short_names(base.model, modules),
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(base.model.get_submodule(name), Conv1D) for name in modules),
    )


def origin_config(base: Base, origin: Origin, *, dropout: float = 0.0) -> LoraConfig:
    """What PEFT is told of an adapter that a run begins with. Raises MethodError, AdapterFormatError."""
    assert origin.folder is not None
    if origin.base_fingerprint not in (None, base.description.fingerprint):
        raise MethodError(
            f"{origin.key}: {origin.name} stands on base {origin.base_fingerprint}, "
            f"and this run on {base.description.fingerprint}"
        )
    own = SiteWeights(base.model, base.description)
    read = read_adapter(origin.folder, base.description, torch.float32, own)  # judges it: what is attached is served
    config = read_config(origin.folder)
    kinds = {"use_dora": "DoRA", "modules_to_save": "whole modules", "trainable_token_indices": "trained tokens"}
    found = [kind for setting, kind in kinds.items() if getattr(config, setting, None)]
    if config.bias != "none" or config.lora_bias:
        found.append("biases")
    if read.changes is not None and not found:
        found = list(read.changes.kinds)
    if found:
        raise MethodError(f"{origin.key}: {origin.name} has {found[0]}; plain LoRA on linear layers is trained here")
    config.base_model_name_or_path = None  # the file's name for the base; PEFT would warn of ours
    config.inference_mode = False
    config.lora_dropout = dropout
    return config


def give_origin(model: PeftModel, origin: Origin, adapter: str = DEFAULT) -> None:
    """Put the weights of an adapter that a run begins with into an adapter of `model`. Raises MethodError."""
    assert origin.folder is not None
    if not give_weights(model, load_file(origin.folder / WEIGHTS_FILE), adapter):
        raise MethodError(f"{origin.key}: {origin.name} has tensors that its own config does not mean")


def target_modules(base: Base, section: AdapterSection) -> list[str]:
    """The full names of the modules that `section` means, sorted. Raises MethodError for a name that means none."""
    shapes = base.description.modules
    linear = sorted(name for name, shape in shapes.items() if shape.kind == "linear")
    if section.target_modules == ALL_LINEAR:
        head = base.model.get_output_embeddings()
        return [name for name in linear if base.model.get_submodule(name) is not head]
    chosen: set[str] = set()
    for wanted in section.target_modules:
        found = [name for name in linear if _means(wanted, name)]
        if not found:
            raise MethodError(_no_such_module(base, wanted, linear))
        chosen.update(found)
    return sorted(chosen)


def short_names(model: PreTrainedModel, modules: list[str]) -> list[str]:
    """The last parts of `modules`, where those mean exactly them in the whole model; else `modules`. Sorted."""
    endings = sorted({name.rpartition(".")[2] for name in modules})
    meant = [name for name, _ in model.named_modules() if any(_means(ending, name) for ending in endings)]
    return endings if sorted(meant) == sorted(modules) else sorted(modules)


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward. Transformers 5.23 renamed the method and warns at its old name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def _means(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _no_such_module(base: Base, wanted: str, linear: list[str]) -> str:
    if any(_means(wanted, name) for name in base.description.modules):
        return f"adapter.target_modules: {wanted!r} is an embedding; linear layers are adapted"
    endings = sorted({name.rpartition(".")[2] for name in linear})
    close = difflib.get_close_matches(wanted, endings, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"adapter.target_modules: no linear layer of {base.description.name} is named {wanted!r}.{hint} "
        f"It has: {', '.join(endings)}"
    )


def _whole_if_possible(alpha: float) -> int:
    """PEFT declares alpha as an integer and computes with any number; whole ones are written without a point."""
    return int(alpha) if alpha == int(alpha) else alpha  # type: ignore[return-value]
