"""How a linear layer keeps adapters' factors, and factors laid out so.

It does: round a module's factors into the type and the order in which the layer's arena holds them, its scale folded
in, once, where the adapter is read: what is left for the step is to copy bytes.
It does not: read files (`adapter_parts`), judge shapes (`linear_parts`) or own an arena (`attach`).

Letters: O output features, H input features, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from basemodel.kernels.library import has_cpu_kernels

KERNEL_SOURCES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class LoraPair:
    """One module's factors as they lie in its arena: a [r, H], which is lora_A, and b [strips, r, width], which is
    lora_B times the scale, transposed strip by strip; outputs behind O are zeros.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Rows of this pair."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Copy:
    """Factors on their way to an arena: `to` is a view of it, of the same shape and type."""

    to: torch.Tensor
    factors: torch.Tensor


@dataclass(frozen=True)
class FactorLayout:
    """Factors in `dtype`, B in strips of `strip_outputs` outputs, as our CPU kernel reads it; None: in one strip."""

    dtype: torch.dtype
    strip_outputs: int | None = None

    def lay_out(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> LoraPair | None:
        """a [r, H], b [O, r], contiguous -> the pair; None where a value of it is not finite.

        Each value is rounded once, from float32, and copied: the pair shares no memory with what it is made of. What
        is not finite in `a` or `b` is not finite in the pair.
        """
        if self._is_for_kernel and a.dtype in KERNEL_SOURCES and b.dtype in KERNEL_SOURCES and has_cpu_kernels():
            *pair, is_finite = torch.ops.loraplex.lay_out_factors(a, b, scale)
            return LoraPair(*pair) if is_finite else None
        return self.lay_out_reference(a, b, scale)

    def lay_out_reference(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> LoraPair | None:
        """The same by torch alone."""
        rank, outputs = a.shape[0], b.shape[0]
        width = self.strip_outputs or outputs
        strips = torch.empty(-(-outputs // width), rank, width, dtype=self.dtype)
        _fill_strips(strips, b if scale == 1.0 else b.float() * scale)
        pair = LoraPair(a.to(self.dtype, copy=True), strips)
        return pair if is_finite_throughout(pair.a) and is_finite_throughout(pair.b) else None

    @property
    def _is_for_kernel(self) -> bool:
        return self.strip_outputs is not None and self.dtype == torch.bfloat16


def is_finite_throughout(tensor: torch.Tensor) -> bool:
    """Whether every value is finite. Whether all are is seen in one pass: a sum with one that is not is not finite."""
    return bool(tensor.sum(dtype=torch.float32).isfinite() or torch.isfinite(tensor).all())


def copy_factors(copies: Sequence[Copy]) -> None:
    """Make all copies in one call: between two, a thread that reads adapters could take the interpreter's lock."""
    if copies:
        torch._foreach_copy_([copy.to for copy in copies], [copy.factors for copy in copies], non_blocking=True)


def _fill_strips(strips: torch.Tensor, b: torch.Tensor) -> None:
    """b [O, r] -> strips [strips, r, width], which is filled."""
    width = strips.shape[2]
    whole, rest = divmod(b.shape[0], width)
    strips[:whole].copy_(b[: whole * width].view(whole, width, b.shape[1]).transpose(1, 2))
    if rest:
        strips[whole, :, :rest] = b[whole * width :].T
        strips[whole, :, rest:] = 0
