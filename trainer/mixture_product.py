"""How a layer of a mixture computes: all experts in one product, each token with its own weights.

It does: replace what PEFT's LoRA layers compute where several experts lie in them. In training the products run in the
base's compute type with gradients for experts and weights; in eval mode they run in float32 through
`basemodel.lora_ops.add_lora`, the function of the server, in which an expert that a token did not choose is left out.
It does not: choose experts (`gate`).

Letters: T tokens, H input features, O output features, E experts, R rank rows of all experts together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from basemodel.lora_groups import LoraGroup
from basemodel.lora_ops import LoraPlan, add_lora
from trainer.gate import Gate
from trainer.tuners import LoraLayer, LoraVariant, PeftModel


class MixtureProduct(LoraVariant):  # PEFT's extension point for what a LoRA layer adds to its base layer's output
    """The product of all experts of one layer. PEFT asks once for each expert; the first answers for all."""

    def __init__(self, layer: LoraLayer, names: tuple[str, ...], gate: Gate) -> None:
        self._names = tuple(name for name in names if name in layer.lora_A)
        self._gate = gate
        ranks = [layer.r[name] for name in self._names]
        owners = torch.tensor([names.index(name) for name in self._names])
        self._owner = owners.repeat_interleave(torch.tensor(ranks))  # [R]: whose each rank row is

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """`result` [..., O] plus every expert's product of x [..., H], times the token's weight for it."""
        if active_adapter != self._names[0]:
            return result
        a = torch.cat([module.lora_A[name].weight for name in self._names])
        b = torch.cat([module.lora_B[name].weight * module.scaling[name] for name in self._names], dim=1)
        weights, owner = self._gate.weights, self._owner.to(x.device)
        if not module.training:
            return served_mixture(result, x, a, b, weights[:, owner])
        learned: Tensor = LearnedMixture.apply(result, x, a, b, weights, owner)  # type: ignore[no-untyped-call]
        return learned


def served_mixture(result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """result [..., O] + (x [..., H] A^T * weights [T, R]) B^T, with A [R, H] and B [O, R], in float32. No gradient."""
    out = result.detach().reshape(-1, result.shape[-1]).clone()
    everyone = LoraGroup(slice(0, len(out)), slice(0, len(a)), off=weights == 0, weight=weights)
    plan = LoraPlan((everyone,), frozenset({0}))
    add_lora(out, x.detach().reshape(-1, x.shape[-1]), a.detach().T, b.detach().T, plan)
    return out.view_as(result)


class LearnedMixture(torch.autograd.Function):
    """The same in the type of x, with gradients for x, A, B and the weights [T, E]; owner [R] says whose a row is."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor, owner: Tensor) -> Tensor:
        """A and B are float32, with the scale in B; both are rounded to the type of x."""
        flat = x.reshape(-1, x.shape[-1])
        a_rounded, b_rounded = a.to(x.dtype), b.to(x.dtype)
        hidden = flat @ a_rounded.T
        spread = weights[:, owner].to(x.dtype)
        ctx.save_for_backward(flat, hidden, spread, a_rounded, b_rounded, owner)
        ctx.experts = weights.shape[1]
        return torch.addmm(result.reshape(-1, result.shape[-1]), hidden * spread, b_rounded.T).view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With h = x A^T, u = g B: dw sums u h over an expert's rows, dx = (u w) A, dA = (u w)^T x, dB = g^T (h w)."""
        flat, hidden, spread, a, b, owner = ctx.saved_tensors
        (gradient,) = gradients
        needs_x, needs_a, needs_b, needs_weights = ctx.needs_input_grad[1:5]
        g = gradient.reshape(-1, gradient.shape[-1])
        u = g @ b
        u_spread = u * spread
        weights_gradient = None
        if needs_weights:
            weights_gradient = torch.zeros(len(flat), ctx.experts, device=g.device)
            weights_gradient.index_add_(1, owner, (u * hidden).float())
        return (
            gradient,
            (u_spread @ a).view(*gradient.shape[:-1], flat.shape[-1]) if needs_x else None,
            (u_spread.T @ flat).float() if needs_a else None,
            (g.T @ (hidden * spread)).float() if needs_b else None,
            weights_gradient,
            None,
        )


def use_mixture_product(model: PeftModel, names: tuple[str, ...], gate: Gate) -> None:
    """Let every LoRA layer of `model` apply the experts `names` as `gate` says."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            product = MixtureProduct(module, names, gate)
            for adapter in module.lora_A:
                module.lora_variant[adapter] = product
            module.cast_input_dtype_enabled = False
