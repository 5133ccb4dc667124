"""How a linear layer keeps adapters' factors, and factors laid out so.

It does: round a module's factors into the type and the order in which they are computed, its scale folded in, once,
where the adapter is read: a step reads them where they lie (`factor_table`), or copies bytes (`layer_arena`). What our
CPU kernel computes and a grid of 8 bits holds (`eight_bits`) is kept so, in half the bytes, with the same results.
It does not: read files (`adapter_parts`), judge shapes (`linear_parts`) or own an arena.

Letters: O output features, H input features, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from basemodel.kernels.library import has_cpu_kernels

KERNEL_SOURCES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class LoraPair:
    """One module's factors as its layer keeps them: a [r, H], which is lora_A, and b [strips, r, width], which is
    lora_B times the scale, transposed strip by strip; outputs behind O are zeros.

    With `steps` [r] float32 both are int8, whole numbers, and a rank's part of b a is multiplied with its step; of each
    32 values of a row of `a` those of even places come before those of odd ones.
    """

    a: torch.Tensor
    b: torch.Tensor
    steps: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of this pair."""
        return self.a.shape[0]

    @property
    def pair_bytes(self) -> int:
        """Memory that it takes."""
        return self.a.nbytes + self.b.nbytes + (0 if self.steps is None else self.steps.nbytes)


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
        pairs, bad = lay_out_all({"": Factors(a, b, scale, self)})
        return None if bad is not None else pairs[""]

    def lay_out_reference(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> LoraPair | None:
        """The same by torch alone, never in 8 bits."""
        rank, outputs = a.shape[0], b.shape[0]
        width = self.strip_outputs or outputs
        strips = torch.empty(-(-outputs // width), rank, width, dtype=self.dtype)
        _fill_strips(strips, b if scale == 1.0 else b.float() * scale)
        pair = LoraPair(a.to(self.dtype, copy=True), strips)
        return pair if is_finite_throughout(pair.a) and is_finite_throughout(pair.b) else None


@dataclass(frozen=True)
class Factors:
    """One module's factors as they stand in the file, a [r, H] and b [O, r], and how they are to be kept."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    layout: FactorLayout

    @property
    def rank(self) -> int:
        """Rows of lora_A."""
        return self.a.shape[0]

    @property
    def is_for_kernel(self) -> bool:
        """Whether the CPU kernels lay them out."""
        return (
            self.layout.strip_outputs is not None
            and self.layout.dtype == torch.bfloat16
            and self.a.dtype in KERNEL_SOURCES
            and self.b.dtype in KERNEL_SOURCES
            and has_cpu_kernels()
        )


def lay_out_all(factors: Mapping[str, Factors]) -> tuple[dict[str, LoraPair], str | None]:
    """The pairs of an adapter by module, as `FactorLayout.lay_out` says, and a module with a value that is not finite.

    What the kernels lay out they do in one call, without the interpreter, into one piece of memory.
    """
    first = {path: each for path, each in factors.items() if each.is_for_kernel}
    pairs: dict[str, LoraPair] = {}
    if first:
        given = list(first.values())
        kept_a, kept_b, kept_steps, bad = torch.ops.loraplex.lay_out_factors(
            [each.a for each in given], [each.b for each in given], [each.scale for each in given]
        )
        if bad >= 0:
            return {}, list(first)[bad]
        steps = (each if len(each) else None for each in kept_steps)
        pairs = dict(zip(first, map(LoraPair, kept_a, kept_b, steps), strict=True))
    for path, each in factors.items():
        if path in first:
            continue
        pair = each.layout.lay_out_reference(each.a, each.b, each.scale)
        if pair is None:
            return {}, path
        pairs[path] = pair
    return pairs, None


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
