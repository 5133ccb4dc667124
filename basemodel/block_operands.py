"""The linear layers of a fused block as one call of the CPU kernels takes them, and the step's plan beside them.

It does: list weights, biases and tables of factors, once: what adapters come and go is written into the tables.
It does not: decide whether a layer can be joined under a plan (`adapted_linear.AdaptedLinear.joins`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from basemodel.adapted_linear import AdaptedLinear
from basemodel.lora_ops import LoraPlan


def block_operands(layers: Sequence[AdaptedLinear]) -> list[torch.Tensor | None]:
    """Three tensors for each layer: weight, bias, table."""
    return [operand for layer in layers for operand in layer.operands]


def kernel_plan(plan: LoraPlan | None) -> tuple[list[torch.Tensor], int]:
    """The plan as a block gives it to the kernel: its tensors (none: no adapter), and the size of the scratch."""
    runs = None if plan is None else plan.runs
    assert plan is None or runs is not None or not plan.starts, "adapters would be left out in silence"
    return ([], 0) if runs is None else (runs.tensors, runs.hidden_size)


def packed_layers(module: nn.Module, *names: str) -> tuple[AdaptedLinear, ...] | None:
    """The named layers of a module, if all of them run on the 4-bit kernel."""
    found = [getattr(module, name, None) for name in names]
    layers = tuple(layer for layer in found if isinstance(layer, AdaptedLinear) and layer.is_packed)
    return layers if len(layers) == len(names) else None
