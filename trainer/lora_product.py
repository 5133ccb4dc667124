"""How an adapter's layer computes: fast where it learns, and as the server does where it is judged.

It does: replace what PEFT's LoRA layers compute. In training the products run in the base's compute type over float32
parameters, as under autocast, but with one pass over a layer's output instead of PEFT's four (docs/log.md has the
times). In eval mode they run in float32 through `basemodel.lora_ops.add_lora`, the function of the server: losses,
answers and probes are those of the adapter as it will be served.
It does not: change what is trained or saved. Over a float32 base both equal PEFT to rounding.

Letters: T tokens, H input features, O output features, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from basemodel.lora_groups import LoraGroup
from basemodel.lora_ops import LoraPlan, add_lora
from trainer.tuners import LoraLayer, LoraVariant, PeftModel


class ServedProduct(LoraVariant):  # PEFT's extension point for what a LoRA layer adds to its base layer's output
    """The product of one adapter, chosen by the layer's mode."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """`result` [..., O] plus the adapter's product of x [..., H]."""
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        scale = module.scaling[active_adapter]
        if not module.training:
            return served_product(result, x, a, b, scale)
        x = module.lora_dropout[active_adapter](x)
        learned: Tensor = LearnedProduct.apply(result, x, a, b, scale)  # type: ignore[no-untyped-call]
        return learned


def served_product(result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """result [..., O] + (x [..., H] A^T) (scale B^T), with A [r, H] and B [O, r], in float32. It has no gradient."""
    out = result.detach().reshape(-1, result.shape[-1]).clone()
    everyone = LoraGroup(slice(0, len(out)), slice(0, len(a)), off=None, weight=None)
    plan = LoraPlan((everyone,), frozenset({0}))
    add_lora(out, x.detach().reshape(-1, x.shape[-1]), a.detach().T, (b.detach() * scale).T, plan)
    return out.view_as(result)


class LearnedProduct(torch.autograd.Function):
    """The same with gradients, in the type of x."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """A and B are float32 parameters; the scale is folded into B before it is rounded."""
        flat = x.reshape(-1, x.shape[-1])
        a_rounded, b_rounded = a.to(x.dtype), (b * scale).to(x.dtype)
        hidden = flat @ a_rounded.T
        ctx.save_for_backward(flat, hidden, a_rounded, b_rounded)
        ctx.scale = scale
        return torch.addmm(result.reshape(-1, result.shape[-1]), hidden, b_rounded.T).view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """With h = x A^T, C = scale B and g the gradient: dx = g C A, dA = (g C)^T x, dB = scale g^T h."""
        flat, hidden, a, b = ctx.saved_tensors
        (gradient,) = gradients
        g = gradient.reshape(-1, gradient.shape[-1])
        g_hidden = g @ b
        x_gradient = (g_hidden @ a).view(*gradient.shape[:-1], flat.shape[-1])
        a_gradient = (g_hidden.T @ flat).float()
        b_gradient = (g.T @ hidden).float() * ctx.scale
        return gradient, x_gradient, a_gradient, b_gradient, None


def use_served_product(model: PeftModel) -> None:
    """Let every LoRA layer of `model` compute as this module says."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.lora_A:
                module.lora_variant[adapter] = ServedProduct()
            module.cast_input_dtype_enabled = False
