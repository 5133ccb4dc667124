"""A linear layer of the base with adapters beside it.

It does: compute the base's output and every token's adapters, on our CPU kernel where that can stand in for the base
layer, else by the layer itself and its arena (`layer_arena`).
It does not: place adapters (`attach`), or decide which token uses which (`lora_ops`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from basemodel.factor_layout import FactorLayout
from basemodel.layer_arena import LayerArena
from basemodel.linear_changes import LinearChanges
from basemodel.lora_ops import LoraPlan
from basemodel.packed_linear import STRIP, DenseLinear, PackedLinear, can_multiply, can_pack


class StepPlans(Protocol):
    """What every layer of a model reads in a step: `attach.AdapterSites`. `head_plan` sees the sampled tokens only."""

    plan: LoraPlan | None
    head_plan: LoraPlan | None


class AdaptedLinear(nn.Module):
    """x [..., H] -> [..., O].

    Where our CPU kernel can stand in for the base layer it takes over its weights, and finds adapters through `table`
    [R, 4] (`factor_table`), in bfloat16 or 8 bits, B strip after strip. Elsewhere the layer has an `arena`. `changes`
    is what adapters do here besides.
    """

    def __init__(
        self,
        base: nn.Module,
        plans: StepPlans,
        in_features: int,
        out_features: int,
        *,
        rows: int,
        dtype: torch.dtype,
        is_head: bool,
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features = in_features
        self.out_features = out_features
        self.is_head = is_head
        self.changes = LinearChanges(out_features)
        self.packed = PackedLinear(base) if can_pack(base) else None
        self._kernel = self.packed or (DenseLinear(base) if can_multiply(base) else None)
        self.layout = FactorLayout(dtype) if self._kernel is None else FactorLayout(torch.bfloat16, STRIP)
        self.table: torch.Tensor | None = None  # set once, where there is no arena
        self.arena: LayerArena | None = None
        if self._kernel is None:
            self.arena = LayerArena(base, self.layout, rows, in_features, out_features)
        self._plans = [plans]  # in a list, so that torch does not look for modules in it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, with every token's adapters added; [..., O' > O] where one has more outputs."""
        plan = self._plans[0].head_plan if self.is_head else self._plans[0].plan
        changed = None if plan is None else plan.changed
        if changed is not None and self.changes.slots.isdisjoint(changed.slots):
            changed = None
        if self._kernel is not None:
            rows = None if changed is None else self.changes.output_rows(changed)
            out = self._kernel(x.reshape(-1, self.in_features), plan, self.table, rows)
        else:
            assert self.arena is not None
            out = self.arena.output(x, plan)
            if changed is not None:
                self.changes.scale(out, changed)
        if changed is not None:
            out = self.changes.replace(out, x.reshape(-1, self.in_features), changed)
        return out.view(*x.shape[:-1], out.shape[-1])

    @property
    def is_packed(self) -> bool:
        """Whether the base layer runs on the 4-bit CPU kernel, so that a fused block may take it in."""
        return self.packed is not None

    def joins(self, plan: LoraPlan | None) -> bool:
        """Whether `operands` say all that this layer computes under this plan; if not, a block calls the layer.

        Blocks do not ask where there is no plan: without adapters a packed layer is its weight and bias.
        """
        is_changed = (
            plan is not None and plan.changed is not None and not self.changes.slots.isdisjoint(plan.changed.slots)
        )
        return self.packed is not None and not is_changed

    @property
    def operands(self) -> tuple[torch.Tensor | None, ...]:
        """The layer as a fused block gives it to the kernel: weight, bias, table. They stay the same for good."""
        assert self.packed is not None
        return self.packed.weight, self.packed.bias, self.table

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
