"""The linear layers of a fused block as one call of the CPU kernels takes them, and the step's plan beside them.

It does: list weights, biases and arenas, anew only when other adapters take part. It does not: decide whether a layer
can be joined under a plan (`attach.AdaptedLinear.joins`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from basemodel.attach import AdaptedLinear, AdapterSites
from basemodel.lora_ops import LoraPlan


class BlockOperands:
    """Four tensors for each layer: weight, bias, a, b (None: no adapter of the step touches it). Only the engine loop
    calls it.
    """

    def __init__(self, layers: Sequence[AdaptedLinear], sites: AdapterSites) -> None:
        self._layers = tuple(layers)
        self._sites = sites
        self._bare = [operand for layer in layers for operand in layer.operands(None)]
        self._kept = self._bare
        self._kept_for: tuple[int, frozenset[int] | None] = (-1, None)

    def of(self, plan: LoraPlan | None) -> list[torch.Tensor | None]:
        """The operands under a plan. Which layers an adapter touches changes only when one is placed or cleared."""
        if plan is None:
            return self._bare
        placements, starts = self._kept_for
        if placements != self._sites.placements or (starts is not plan.starts and starts != plan.starts):
            self._kept = [operand for layer in self._layers for operand in layer.operands(plan)]
            self._kept_for = (self._sites.placements, plan.starts)
        return self._kept


def kernel_plan(plan: LoraPlan | None) -> tuple[list[torch.Tensor], int]:
    """The plan as a block gives it to the kernel: its tensors (none: no adapter), and the size of the scratch."""
    runs = None if plan is None else plan.runs
    return ([], 0) if runs is None else (runs.tensors, runs.hidden_size)


def packed_layers(module: nn.Module, *names: str) -> tuple[AdaptedLinear, ...] | None:
    """The named layers of a module, if all of them run on the 4-bit kernel."""
    found = [getattr(module, name, None) for name in names]
    layers = tuple(layer for layer in found if isinstance(layer, AdaptedLinear) and layer.is_packed)
    return layers if len(layers) == len(names) else None
