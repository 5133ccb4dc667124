"""The one door to PEFT.

It does: name the parts of PEFT that the trainer uses, and keep PEFT's own deprecated calls quiet. PEFT imports
bitsandbytes, which `basemodel.four_bit` must import first (it keeps it from fetching kernels): hence the order below,
and no other module of the trainer imports PEFT.
It does not: change PEFT (`lora_product` uses its extension point).
"""

from __future__ import annotations

import warnings

from transformers import PreTrainedModel

# isort: off
import basemodel.four_bit  # noqa: F401  # before peft, see above
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
# isort: on

__all__ = ["LoraConfig", "LoraLayer", "LoraVariant", "PeftModel", "with_adapter"]


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """`model` wrapped with a new adapter; the model is changed in place."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks for `is_gradient_checkpointing`, which transformers 5.23 announces to rename.
        warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, config)
