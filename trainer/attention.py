"""Attention whose gradient is computed in float32.

It does: register an attention for transformers that runs the stock SDPA forward unchanged, and takes its gradient from
a float32 recomputation. On CPUs, torch's bfloat16 backward of SDPA is about seven times slower than its float32
backward (docs/log.md): it would be 40% of a step. The gradient becomes more exact besides.
It does not: change any forward value, or act on float32 models, on CUDA, or where attention has dropout of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "loraplex_float32_gradient"


def use_float32_gradient(model: PreTrainedModel) -> bool:
    """Choose this attention where it pays: a bfloat16 model on the CPU with SDPA. Says whether it was chosen."""
    pays = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    if not pays or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(ATTENTION_NAME, float32_gradient_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation(ATTENTION_NAME)
    return True


def float32_gradient_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers' attention functions: query [B, heads, T, D] -> [B, T, heads, D]."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **settings)[0]

    if dropout or not torch.is_grad_enabled():
        return attend(query, key, value), None
    return Float32Gradient.apply(query, key, value, attend), None  # type: ignore[no-untyped-call]


class Float32Gradient(torch.autograd.Function):
    """attend(query, key, value), with the gradient of a float32 recomputation."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The plain forward."""
        ctx.save_for_backward(query, key, value)
        ctx.attend = attend
        return attend(query, key, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Recompute in float32 and differentiate that."""
        (gradient,) = gradients
        inputs = [tensor.detach().float().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.attend(*inputs)
        query, key, value = torch.autograd.grad(output, inputs, gradient.float())
        return query.to(gradient.dtype), key.to(gradient.dtype), value.to(gradient.dtype), None
