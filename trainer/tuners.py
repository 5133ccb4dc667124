"""The one door to PEFT.

It does: name the parts of PEFT that the trainer uses, and keep PEFT's own deprecated calls quiet. PEFT imports
bitsandbytes, which `basemodel.four_bit` must import first (it keeps it from fetching kernels): hence the order below,
and no other module of the trainer imports PEFT.
It does not: change PEFT (`lora_product` and `mixture_product` use its extension point).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

# isort: off
import basemodel.four_bit  # noqa: F401  # before peft, see above
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.utils import set_peft_model_state_dict
# isort: on

__all__ = [
    "DEFAULT",
    "LoraConfig",
    "LoraLayer",
    "LoraVariant",
    "PeftModel",
    "give_weights",
    "read_config",
    "with_adapter",
    "with_adapters",
    "without_adapters",
]
DEFAULT = "default"  # the name under which PEFT saves into the folder itself


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """`model` wrapped with a new adapter; the model is changed in place."""
    return with_adapters(model, {DEFAULT: config})


def with_adapters(model: PreTrainedModel, configs: Mapping[str, LoraConfig]) -> PeftModel:
    """`model` wrapped with new adapters, all of them active; the model is changed in place."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks for `is_gradient_checkpointing`, which transformers 5.23 announces to rename.
        warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*", category=FutureWarning)
        (first, config), *others = configs.items()
        wrapped: PeftModel = get_peft_model(model, config, adapter_name=first)
        for name, config in others:
            wrapped.add_adapter(name, config)
        if others:
            cast("LoraModel", wrapped.base_model).set_adapter(list(configs))
        return wrapped


def read_config(folder: Path) -> LoraConfig:
    """The config of an adapter folder that was checked."""
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    return config


def give_weights(model: PeftModel, tensors: Mapping[str, Tensor], adapter: str) -> bool:
    """Put the tensors of an adapter folder into an adapter of `model`; says whether each one had its place."""
    outcome: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
    missing = [key for key in outcome.missing_keys if "lora_" in key and f".{adapter}." in key]
    return not missing and not outcome.unexpected_keys


@contextmanager
def without_adapters(model: PeftModel) -> Iterator[None]:
    """Inside, the base computes alone. PEFT lets every adapter train afterwards; here what was frozen stays so."""
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with model.disable_adapter():
        yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
