"""A gated MLP of transformers in one call of the CPU kernels, adapters included."""

from __future__ import annotations

import torch
from torch import nn

from basemodel.adapted_linear import AdaptedLinear
from basemodel.attach import AdapterSites
from basemodel.block_operands import block_operands, kernel_plan, packed_layers
from basemodel.trials import agree, trial_rows

MLPS = {f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Gemma", "Gemma2", "Gemma3")}
ACTIVATIONS = {"SiLUActivation": 0, "SiLU": 0, "GELUTanh": 1}


class FusedMLP:
    """down(activation(gate(x)) * up(x)) in one call, adapters included. x [..., H] -> [..., H]."""

    def __init__(
        self, layers: tuple[AdaptedLinear, AdaptedLinear, AdaptedLinear], activation: int, sites: AdapterSites
    ):
        """`layers`: gate, up, down."""
        self.layers = layers
        self.activation = activation
        self._features = [layer.out_features for layer in layers]
        self._operands = block_operands(layers)
        self._sites = sites

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        plan = self._sites.plan
        gate, up, down = self.layers
        rows = x.reshape(-1, gate.in_features).contiguous()
        if not all(layer.joins(plan) for layer in self.layers):
            inner: torch.Tensor = torch.ops.loraplex.gate(gate(rows), up(rows), self.activation)
            own: torch.Tensor = down(inner)
            return own.view(x.shape)
        out: torch.Tensor = torch.ops.loraplex.gated_mlp(
            rows, self._operands, self._features, self.activation, *kernel_plan(plan)
        )
        return out.view(x.shape)


def fused_mlp(module: nn.Module, sites: AdapterSites) -> FusedMLP | None:
    """What can stand in for this module; None: it runs as it is."""
    if type(module).__name__ not in MLPS:
        return None
    layers = packed_layers(module, "gate_proj", "up_proj", "down_proj")
    activation = ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    if layers is None or activation is None or len(list(module.children())) != 4:
        return None
    block = FusedMLP((layers[0], layers[1], layers[2]), activation, sites)
    return block if agree(module, block, trial_rows(layers[0].in_features)) else None
