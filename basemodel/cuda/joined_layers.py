"""Adapted layers that read the same input, on a GPU: one 4-bit product and one LoRA launch for q, k and v.

It does: compute all of them when the first is called, and hand the others their part when they are called with the
same tensor; keep the rank rows of all of them side by side, as the kernel reads them.
It does not: find the layers or place adapters (`attach`). A layer that is called with another tensor gets a result of
its own, so a model that does not share the input is slower, never wrong.
Run on the CPU by the tests, with Triton's interpreter. Not yet run on a GPU.

Letters: T tokens, H input features, S layers, R rank rows, O output features of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch

from basemodel.cuda.joined_linear import JoinedLinear, can_join
from basemodel.cuda.library import OUTPUT_BLOCK, add_lora_tiles
from basemodel.lora_ops import LoraPlan


class JoinedLayers:
    """The base layers of S adapted layers, and their rank rows. Only the layers themselves call it, in the engine loop.

    `used` are their sets of the adapters (by first row) that have factors there, which change as adapters come and go.
    """

    def __init__(self, layers: Sequence[Any], used: Sequence[Set[int]], rows: int, dtype: torch.dtype) -> None:
        """Takes over the weights of layers that `suits` accepts; they go on as views of them."""
        self._linear = JoinedLinear(layers)
        self._used = used
        self._rows, self._dtype = rows, dtype
        self._device: torch.device = layers[0].weight.device
        ends = torch.tensor(self._linear.out_features).cumsum(0)
        self._spans = [
            slice(end - width, end) for end, width in zip(ends.tolist(), self._linear.out_features, strict=True)
        ]
        self._ends = ends.to(self._device, torch.int32)
        self._a: torch.Tensor | None = None  # [S, R, H]
        self._b: torch.Tensor | None = None  # [R, O]
        self._x: torch.Tensor | None = None  # whose outputs are kept
        self._outputs: torch.Tensor | None = None  # [T, O]
        self._waiting: set[int] = set()  # the layers that have not asked for their part

    @staticmethod
    def suits(layers: Sequence[Any]) -> bool:
        """Whether these can be one product, and each but the last ends where a block of the kernel's outputs does."""
        return can_join(layers) and all(layer.out_features % OUTPUT_BLOCK == 0 for layer in layers[:-1])

    @property
    def has_arena(self) -> bool:
        """Whether there are rank rows."""
        return self._a is not None

    def arena(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rank rows of one layer, made with those of all: a [R, H] and b [R, its outputs]."""
        if self._a is None or self._b is None:
            features, outputs = self._linear.in_features, self._spans[-1].stop
            self._a = torch.zeros(len(self._spans), self._rows, features, dtype=self._dtype, device=self._device)
            self._b = torch.zeros(self._rows, outputs, dtype=self._dtype, device=self._device)
        return self._a[index], self._b[:, self._spans[index]]

    def output(self, index: int, x: torch.Tensor, plan: LoraPlan | None) -> torch.Tensor:
        """One layer's output, adapters added: x [..., H] -> [T, its outputs], which is part of a wider tensor."""
        if self._x is not x or index not in self._waiting or self._outputs is None:
            self._outputs = self._compute(x, plan)
            self._x, self._waiting = x, set(range(len(self._spans)))
        out = self._outputs[:, self._spans[index]]
        self._waiting.discard(index)
        if not self._waiting:
            self._x = self._outputs = None
        return out

    def _compute(self, x: torch.Tensor, plan: LoraPlan | None) -> torch.Tensor:
        """All outputs: x [..., H] -> [T, O]."""
        out = self._linear(x).view(-1, self._spans[-1].stop)
        if plan is None or plan.tiles is None or self._a is None or self._b is None:
            return out
        if plan.everywhere or not all(used.isdisjoint(plan.starts) for used in self._used):
            add_lora_tiles(out, x.reshape(-1, x.shape[-1]), self._a, self._b, self._ends, plan.tiles)
        return out
