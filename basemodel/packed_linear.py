"""Linear layers on our CPU kernel: 4-bit ones in its own layout, the adapters of every token added in the same pass.

It does: repack a bitsandbytes layer, whose own copy is then let go, and call the kernel; bf16 layers are used as they
are.
It does not: change a number. A weight is code x scale in float, rounded to bfloat16, as bitsandbytes dequantizes it,
and sums run in float; results differ by the order of sums alone (tests/basemodel/test_packed_linear.py).

    strip of 16 output features, block of 64 input features: 16 scales (float), then 16 x 32 bytes of codes; the bytes
    of two rows lie together, 8 of the one and 8 of the other in turns. Byte j of a row holds the codes of features j
    (bits 1 to 4) and j + 32 (bits 5 to 7 and 0).

Letters: T tokens, K input features, O output features, R rank rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.functional import pad

from basemodel.four_bit import Linear4bit, functional
from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import LoraPlan

STRIP = 16
BLOCK = 64
HALF = BLOCK // 2


@dataclass(frozen=True)
class OutputRows:
    """Rows of scales and shifts [N, strips * 16] float32, and which of them each token has: `index` [T] int32, -1 none.

    A token's outputs y, with bias and adapters, become scale * y + shift, before they are rounded.
    """

    index: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


class PackedLinear:
    """The weights of one layer in the kernel's layout. x [T, K] bfloat16 -> [T, O] bfloat16. Never changed."""

    def __init__(self, layer: nn.Module) -> None:
        """Takes over the weights of a layer that `can_pack` accepts: the layer keeps an empty one."""
        assert can_pack(layer)
        self.out_features, self.in_features = layer.weight.quant_state.shape
        self.strips = -(-self.out_features // STRIP)
        self.weight = _packed(layer)
        self.bias = None if layer.bias is None else layer.bias.to(torch.bfloat16).contiguous()
        layer.weight.data = layer.weight.data.new_empty(0)

    def __call__(
        self,
        x: torch.Tensor,
        plan: LoraPlan | None = None,
        table: torch.Tensor | None = None,
        changed: OutputRows | None = None,
    ) -> torch.Tensor:
        """The layer's output; with a plan, every token's adapters added, which `table` [R, 4] finds (factor_table)."""
        besides = _besides(plan, table, changed)
        y: torch.Tensor = torch.ops.loraplex.nf4_linear(x, self.weight, self.bias, self.out_features, *besides)
        return y

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T alone, without bias: x [T, K] bfloat16 -> [T, O] bfloat16."""
        y: torch.Tensor = torch.ops.loraplex.nf4_linear(x, self.weight, None, self.out_features)
        return y

    def row_squares(self) -> torch.Tensor:
        """The sum of squares of each row of W, as it is dequantized: [O] float32."""
        squares: torch.Tensor = torch.ops.loraplex.nf4_row_squares(self.weight, self.out_features, self.in_features)
        return squares[: self.out_features]


class DenseLinear:
    """A bf16 layer (an output head) on the kernel, over its own weights [O, K]. x [T, K] bf16 -> [T, O] bf16."""

    def __init__(self, layer: nn.Linear) -> None:
        """Shares the layer's weights, which may be the embedding's too."""
        assert can_multiply(layer)
        self.strips = layer.out_features // STRIP
        self._weight = layer.weight
        self._bias = layer.bias

    def __call__(
        self,
        x: torch.Tensor,
        plan: LoraPlan | None = None,
        table: torch.Tensor | None = None,
        changed: OutputRows | None = None,
    ) -> torch.Tensor:
        """The layer's output; the rest as for `PackedLinear`."""
        besides = _besides(plan, table, changed)
        y: torch.Tensor = torch.ops.loraplex.bf16_linear(x, self._weight, self._bias, *besides)
        return y


def _besides(plan: LoraPlan | None, table: torch.Tensor | None, changed: OutputRows | None) -> tuple[object, ...]:
    """What the kernel does besides the product, as it reads it."""
    adapters: tuple[object, ...] = (None,) * 6 + (0,)
    assert plan is None or plan.runs is not None or not plan.starts, "adapters would be left out in silence"
    if plan is not None and plan.runs is not None:
        adapters = (table, *plan.runs.tensors, plan.runs.hidden_size)
    return adapters if changed is None else (*adapters, changed.index, changed.scale, changed.shift)


def can_multiply(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the kernel can stand in for this bf16 layer, here and on this machine."""
    return type(layer) is nn.Linear and suits_kernel(layer.weight)


def suits_kernel(weight: torch.Tensor) -> bool:
    """Whether the kernel can multiply with this plain weight [O, K], here and on this machine."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
        and weight.shape[1] % BLOCK == 0
        and weight.shape[0] % STRIP == 0
        and has_cpu_kernels()
    )


def can_pack(layer: nn.Module) -> TypeGuard[Any]:
    """Whether the kernel can stand in for this layer, here and on this machine."""
    if not isinstance(layer, Linear4bit) or layer.weight.device.type != "cpu":
        return False
    state: Any = getattr(layer.weight, "quant_state", None)
    return (
        state is not None
        and state.quant_type == "nf4"
        and state.blocksize == BLOCK
        and state.shape[1] % BLOCK == 0
        and layer.compute_dtype == torch.bfloat16
        and has_cpu_kernels()
    )


def _packed(layer: Any) -> torch.Tensor:
    state = layer.weight.quant_state
    out_features, in_features = state.shape
    blocks, strips = in_features // BLOCK, -(-out_features // STRIP)
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    scales = scales.float().view(out_features, blocks)
    raw = layer.weight.data.view(torch.uint8).reshape(-1)
    codes = torch.stack([raw >> 4, raw & 15], dim=1).view(out_features, blocks, BLOCK)  # the first one is high
    low, high = codes.view(out_features, blocks, 2, HALF).unbind(2)  # features j and j + 32
    pairs = low << 1 | high << 5 | high >> 3
    missing = strips * STRIP - out_features
    pairs, scales = pad(pairs, (0, 0, 0, 0, 0, missing)), pad(scales, (0, 0, 0, missing))
    eights = pairs.view(strips, STRIP // 2, 2, blocks, HALF // 8, 8)  # of two rows each
    pairs = eights.permute(0, 3, 1, 4, 2, 5).reshape(strips, blocks, STRIP * HALF)
    heads = scales.view(strips, STRIP, blocks).permute(0, 2, 1).contiguous().view(torch.uint8)
    return torch.cat([heads.view(strips, blocks, STRIP * 4), pairs], dim=2).reshape(-1)
