"""An RMS norm of transformers in one call of the CPU kernels. Letters: H hidden features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from basemodel.trials import agree, trial_rows

# How a norm scales, as row_math.h counts: rounds and multiplies by the weight, or multiplies by 1 + weight and rounds.
ROUNDED, ONE_PLUS = 0, 1
NORMS = {
    "LlamaRMSNorm": ROUNDED,
    "MistralRMSNorm": ROUNDED,
    "Qwen2RMSNorm": ROUNDED,
    "Qwen3RMSNorm": ROUNDED,
    "Phi3RMSNorm": ROUNDED,
    "GraniteRMSNorm": ROUNDED,
    "MixtralRMSNorm": ROUNDED,
    "GemmaRMSNorm": ONE_PLUS,
    "Gemma2RMSNorm": ONE_PLUS,
    "Gemma3RMSNorm": ONE_PLUS,
}


@dataclass(frozen=True)
class FusedNorm:
    """An RMS norm in one pass. x [..., H] -> [..., H]. The weight is the module's at each call: it may be replaced."""

    module: nn.Module
    epsilon: float
    scaling: int
    general: Callable[..., torch.Tensor]

    @property
    def weight(self) -> torch.Tensor:
        """The norm's weight [H]."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm; in any other type than bfloat16 the module's own."""
        if hidden_states.dtype != torch.bfloat16:
            return self.general(hidden_states)
        weight = self.weight
        rows = hidden_states.reshape(-1, weight.shape[0]).contiguous()
        out: torch.Tensor = torch.ops.loraplex.rms_norm(rows, weight, self.epsilon, self.scaling)
        return out.view(hidden_states.shape)


def norm_of(module: nn.Module | None) -> FusedNorm | None:
    """A norm's own parts, not tried yet."""
    scaling = NORMS.get(type(module).__name__)
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or scaling is None or not isinstance(weight, torch.Tensor) or not isinstance(epsilon, float):
        return None
    if weight.dim() != 1 or weight.dtype != torch.bfloat16:
        return None
    return FusedNorm(module, epsilon, scaling, module.forward)


def fused_norm(module: nn.Module) -> FusedNorm | None:
    """What can stand in for this module; None: it runs as it is."""
    block = norm_of(module)
    if block is None or not agree(module, block, trial_rows(block.weight.shape[0])):
        return None
    return block
