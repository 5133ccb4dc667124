"""The rank rows of a linear layer that our CPU kernel does not compute: its adapters by torch, or on a GPU.

It does: make the rows when the first adapter needs them, say where an adapter's factors are to be copied, and add the
adapters of a step to the layer's output.
It does not: decide who owns which rows (`serving.engine.adapter_pool`), or know the other layers (`attach`).

Letters: T tokens, H input features, O output features, R rank rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from basemodel.cuda.joined_layers import JoinedLayers
from basemodel.cuda.library import add_lora_tiles
from basemodel.factor_layout import Copy, FactorLayout, LoraPair
from basemodel.lora_ops import LoraPlan, add_lora


class LayerArena:
    """a [R, H] and b [R, O], in the type of `layout`. Only `AdapterSites` and the layer itself call it.

    A layer that no adapter touches has no rows and costs nothing. `used` names the adapters (by first row) that have
    factors here: a step whose adapters do not touch this layer skips it. `joined`: the layers that are computed in one
    product with this one, and which of them it is.
    """

    def __init__(self, base: nn.Module, layout: FactorLayout, rows: int, in_features: int, out_features: int) -> None:
        self.used: set[int] = set()
        self.joined: tuple[JoinedLayers, int] | None = None
        self._base: Any = base
        self._layout = layout
        self._rows, self._in_features, self._out_features = rows, in_features, out_features
        self._a: torch.Tensor | None = None
        self._b: torch.Tensor | None = None
        self._ends: torch.Tensor | None = None  # as the GPU kernels read where this layer's outputs end

    def output(self, x: torch.Tensor, plan: LoraPlan | None) -> torch.Tensor:
        """The base layer's output with every token's adapters: x [..., H] -> [T, O]."""
        if self.joined is not None:  # a sibling may be touched where this layer is not
            layers, index = self.joined
            return layers.output(index, x, plan)
        out: torch.Tensor = self._base(x).view(-1, self._out_features)
        if plan is None or self._a is None or self._b is None:
            return out
        if self.used.isdisjoint(plan.starts) and not plan.everywhere:
            return out
        flat = x.reshape(-1, self._in_features)
        if plan.tiles is not None:
            assert self._ends is not None
            add_lora_tiles(out, flat, self._a[None], self._b, self._ends, plan.tiles)
        else:
            add_lora(out, flat, self._a.T, self._b, plan)
        return out

    def place(self, start: int, rank: int, pair: LoraPair | None) -> list[Copy]:
        """Make room for one adapter's factors, laid out as `layout` says, and return what is to be copied there.

        None, or a pair of a smaller rank, leaves zeros in the rest of its rows.
        """
        if pair is None and self._a is None and not (self.joined and self.joined[0].has_arena):
            return []
        self.set_aside()
        assert self._a is not None
        assert self._b is not None
        a, b = self._a[start : start + rank], self._b[start : start + rank]
        self.used.discard(start)
        if pair is None:
            a.zero_()
            b.zero_()
            return []
        if pair.rank < rank:
            a[pair.rank :].zero_()
            b[pair.rank :].zero_()
        self.used.add(start)
        return [Copy(a[: pair.rank], pair.a), Copy(b[: pair.rank], pair.b[0])]

    def set_aside(self) -> None:
        """Make the rank rows, where there are none yet."""
        if self._a is None:
            self._a, self._b = self._new()
            self._ends = torch.tensor([self._out_features], dtype=torch.int32, device=self._a.device)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the rows."""
        return 0 if self._a is None or self._b is None else self._a.nbytes + self._b.nbytes

    def _new(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.joined is not None:
            layers, index = self.joined
            return layers.arena(index)
        device, dtype = self._base.weight.device, self._layout.dtype
        a = torch.zeros(self._rows, self._in_features, dtype=dtype, device=device)
        return a, torch.zeros(self._rows, self._out_features, dtype=dtype, device=device)
