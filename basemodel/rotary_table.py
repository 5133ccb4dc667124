"""Cosines and sines by position, kept: what a model's rotary embedding computes anew in every step.

It does: keep rows of the module's own results, more of them as positions grow, up to a limit.
It does not: compute them itself, or keep what depends on more than the position (dynamic scaling, longrope).

Letters: T tokens, P positions, D head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

# Kinds of rotary embedding whose angle is a function of the position alone.
STATIC = {"default", "linear", "llama3", "yarn"}
FIRST_POSITIONS = 512
TABLE_BYTES = 4 << 20
"""Cosines and sines together: 16,384 positions of heads of 64 features. Beyond that the module is asked again."""


class Turns(NamedTuple):
    """Cosines and sines [P, D] and the row of each token, [T] int64; None: row t is token t's."""

    cosines: torch.Tensor
    sines: torch.Tensor
    places: torch.Tensor | None

    def of_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers hands them on: [1, T, D]."""
        if self.places is None:
            return self.cosines[None], self.sines[None]
        return self.cosines[self.places][None], self.sines[self.places][None]


class RotaryTable:
    """The rotary embedding of one model. Only the engine loop calls it."""

    def __init__(self, rotary: nn.Module) -> None:
        """`rotary` is called as transformers calls it: (x, position_ids [1, T]) -> two of [1, T, D] in x's type."""
        self._rotary: Any = rotary
        kind = getattr(rotary, "rope_type", None)
        self._is_static = isinstance(kind, str) and kind in STATIC
        self._kept: Turns | None = None

    def of(self, positions: torch.Tensor, like: torch.Tensor) -> Turns:
        """The turns of positions [1, T], in the type of `like`."""
        if self._is_static:
            reached = int(positions.max()) + 1
            if self._kept is None or len(self._kept.cosines) < reached or self._kept.cosines.dtype != like.dtype:
                self._grow(reached, like)
            if self._kept is not None and reached <= len(self._kept.cosines):
                return Turns(self._kept.cosines, self._kept.sines, positions[0])
        cosines, sines = self._rotary(like, position_ids=positions)
        return Turns(cosines[0].contiguous(), sines[0].contiguous(), None)

    def _grow(self, reached: int, like: torch.Tensor) -> None:
        """Keep a power of two of positions, if that is not too much."""
        count = max(FIRST_POSITIONS, 1 << (reached - 1).bit_length())
        first, _ = self._rotary(like, position_ids=torch.zeros(1, 1, dtype=torch.long))
        if 2 * count * first.nbytes > TABLE_BYTES:
            return
        cosines, sines = self._rotary(like, position_ids=torch.arange(count)[None])
        self._kept = Turns(cosines[0].contiguous(), sines[0].contiguous(), None)
