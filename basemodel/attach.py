"""Puts the grouped LoRA product beside every linear layer of a base.

It does: replace each linear layer with one that adds adapters from its arena of rank rows, and copy adapters into and
out of those arenas.
It does not: decide who owns which rows (`serving.engine.adapter_pool`) or which token uses which (`lora_ops`).

    AdapterSites.plan        set once before each forward, read by every layer
    AdapterSites.head_plan   the same for the output head, which sees the sampled positions only
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from basemodel.adapter_weights import AdapterWeights, LoraPair
from basemodel.description import BaseDescription
from basemodel.lora_ops import LoraPlan, add_lora
from basemodel.packed_linear import STRIP, DenseLinear, PackedLinear, can_multiply, can_pack


class AdapterSites:
    """Every place of one model that an adapter can change. Only the engine loop changes it.

    `rows` rank rows are set aside in every layer; an adapter of rank r takes r of them, the same ones everywhere.
    `dtype` is the type in which adapters are kept and computed where the CPU kernel does not do it.
    """

    def __init__(self, model: PreTrainedModel, base: BaseDescription, *, rows: int, dtype: torch.dtype) -> None:
        self.rows = rows
        self.dtype = dtype
        self.plan: LoraPlan | None = None
        self.head_plan: LoraPlan | None = None
        head = model.get_output_embeddings()
        self._sites: dict[str, AdaptedLinear] = {}
        for path, shape in base.modules.items():
            if shape.kind != "linear":
                continue
            layer = model.get_submodule(path)
            site = AdaptedLinear(layer, self, shape.in_features, shape.out_features, is_head=layer is head)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, site)
            self._sites[path] = site

    def place(self, start: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into rows [start, start + adapter.rank) of every layer; layers it leaves alone get zeros."""
        assert start + adapter.rank <= self.rows
        for path, site in self._sites.items():
            site.place(start, adapter.rank, adapter.modules.get(path))

    def clear(self, start: int) -> None:
        """Forget the adapter whose rows begin at `start`."""
        for site in self._sites.values():
            site.used.discard(start)

    @property
    def arena_bytes(self) -> int:
        """Memory set aside for adapters so far."""
        return sum(site.arena_bytes for site in self._sites.values())


def rank_row_bytes(model: PreTrainedModel, base: BaseDescription, dtype: torch.dtype) -> int:
    """Bytes of one rank row over all quantized layers (over all linear layers, where none is quantized)."""
    linear = {path: shape for path, shape in base.modules.items() if shape.kind == "linear"}
    counted = {path: shape for path, shape in linear.items() if shape.quantized} or linear
    return sum(
        (shape.in_features + shape.out_features)
        * (torch.bfloat16 if can_pack(model.get_submodule(path)) else dtype).itemsize
        for path, shape in counted.items()
    )


class AdaptedLinear(nn.Module):
    """A linear layer of the base and its arena. x [..., H] -> [..., O].

    The arena is made when the first adapter needs it, so a layer that none touches costs nothing. `used` names the
    adapters (by first row) that have factors here: a step whose adapters do not touch this layer skips it. Where our
    CPU kernel can stand in for the base layer it takes over its weights, and adapters are kept in bfloat16 as it reads
    them: a [R, H] and b [strips, R, 16]. Elsewhere b is [1, R, O], in the type of the sites.
    """

    def __init__(
        self, base: nn.Module, sites: AdapterSites, in_features: int, out_features: int, *, is_head: bool
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features = in_features
        self.out_features = out_features
        self.is_head = is_head
        self.used: set[int] = set()
        self._packed = PackedLinear(base) if can_pack(base) else None
        self._dense = DenseLinear(base) if can_multiply(base) else None
        self._owner = [sites]  # in a list, so that torch does not look for modules in it
        self._a: torch.Tensor | None = None
        self._b: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, with every token's adapters added."""
        plan = self._owner[0].head_plan if self.is_head else self._owner[0].plan
        if plan is not None and self.used.isdisjoint(plan.starts):
            plan = None
        if self._packed is not None:
            flat = x.reshape(-1, self.in_features)
            return self._packed(flat, plan, self._a, self._b).view(*x.shape[:-1], self.out_features)
        out = self._base_output(x)
        if plan is not None and self._a is not None and self._b is not None:
            add_lora(out.view(-1, self.out_features), x.reshape(-1, self.in_features), self._a.T, self._b[0], plan)
        return out

    def _base_output(self, x: torch.Tensor) -> torch.Tensor:
        if self._dense is not None:
            return self._dense(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        out: torch.Tensor = self.base(x)
        return out

    def place(self, start: int, rank: int, pair: LoraPair | None) -> None:
        """Write one adapter's factors; None, or a pair of a smaller rank, leaves zeros in the rest of its rows."""
        if pair is None and self._a is None:
            return
        if self._a is None or self._b is None:
            self._a, self._b = self._new_arena()
        filled = 0
        self.used.discard(start)
        if pair is not None:
            filled = pair.rank
            self._a[start : start + filled].copy_(pair.a.T, non_blocking=True)
            self._b[:, start : start + filled].copy_(self._in_strips(pair.b), non_blocking=True)
            self.used.add(start)
        self._a[start + filled : start + rank].zero_()
        self._b[:, start + filled : start + rank].zero_()

    @property
    def is_packed(self) -> bool:
        """Whether the base layer runs on the 4-bit CPU kernel, so that a fused block may take it in."""
        return self._packed is not None

    def joins(self, plan: LoraPlan | None) -> bool:
        """Whether `operands` say all that this layer computes under this plan; if not, a block calls the layer.

        Blocks do not ask where there is no plan: without adapters a packed layer is its weight and bias.
        """
        return self._packed is not None

    def operands(self, plan: LoraPlan | None) -> tuple[torch.Tensor | None, ...]:
        """The layer as a fused block gives it to the kernel: weight, bias, a, b (None where no adapter touches it)."""
        assert self._packed is not None
        if plan is None or plan.runs is None or self.used.isdisjoint(plan.starts):
            assert plan is None or plan.runs is not None or not plan.starts, "adapters would be left out in silence"
            return self._packed.weight, self._packed.bias, None, None
        return self._packed.weight, self._packed.bias, self._a, self._b

    @property
    def arena_bytes(self) -> int:
        """Bytes of this layer's arena."""
        if self._a is None or self._b is None:
            return 0
        return self._a.nbytes + self._b.nbytes

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, for model code that looks at its type or device."""
        found = self.base.weight
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias, for model code that looks at it."""
        found: object = self.base.bias
        assert found is None or isinstance(found, torch.Tensor)
        return found

    def _new_arena(self) -> tuple[torch.Tensor, torch.Tensor]:
        sites, device = self._owner[0], self.weight.device
        dtype = sites.dtype if self._packed is None else torch.bfloat16
        strips, width = (1, self.out_features) if self._packed is None else (self._packed.strips, STRIP)
        a = torch.zeros(sites.rows, self.in_features, dtype=dtype, device=device)
        b = torch.zeros(strips, sites.rows, width, dtype=dtype, device=device)
        return a, b

    def _in_strips(self, b: torch.Tensor) -> torch.Tensor:
        """b [r, O] as it lies in the arena: [strips, r, width]; outputs that do not exist are zeros."""
        assert self._b is not None
        strips, _, width = self._b.shape
        return pad(b, (0, strips * width - self.out_features)).view(-1, strips, width).transpose(0, 1)
