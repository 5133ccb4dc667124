"""4-bit layers that read the same input, as one: a single product where q, k and v (or gate and up) were several.

It does: put the quantized rows of several layers one below the other. NF4 blocks lie within rows, so nothing is
quantized again; scales are un-nested, because each layer's own offset is in them (4.5 bits a weight, not 4.127). The
layers go on as views of the joined weight, so memory holds it once.
It does not: find layers, or add adapters (`joined_layers`). Not yet run on a GPU.

Letters: T tokens, K input features, O output features of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from basemodel.four_bit import Linear4bit, functional, matmul_4bit


class JoinedLinear:
    """Several layers' weights as one. x [T, K] -> [T, O], the outputs side by side. Never changed."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """Takes over the weights of layers that `can_join` accepts; each computes what it did, from its part."""
        assert can_join(layers)
        states: list[Any] = [layer.weight.quant_state for layer in layers]
        self.out_features = [int(state.shape[0]) for state in states]
        self.in_features = int(states[0].shape[1])
        self._weight = torch.cat([layer.weight.data.view(-1, 1) for layer in layers])
        self._state = functional.QuantState(
            absmax=torch.cat([_scales(state) for state in states]),
            shape=torch.Size([sum(self.out_features), self.in_features]),
            code=states[0].code,
            blocksize=states[0].blocksize,
            quant_type=states[0].quant_type,
            dtype=states[0].dtype,
        )
        self._dtype: torch.dtype = layers[0].compute_dtype or states[0].dtype
        self._bias = _joined_bias(layers, self._dtype)
        self._share(layers)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of all layers."""
        out: torch.Tensor = matmul_4bit(x.to(self._dtype), self._weight, quant_state=self._state, bias=self._bias)
        return out.to(x.dtype)

    def _share(self, layers: Sequence[Any]) -> None:
        """Let the layers read their rows of the joined weight."""
        first_byte = first_scale = 0
        for layer in layers:
            old: Any = layer.weight.quant_state
            packed, scales = layer.weight.data.numel(), old.shape.numel() // old.blocksize
            layer.weight.data = self._weight[first_byte : first_byte + packed]
            layer.weight.quant_state = layer.quant_state = functional.QuantState(
                absmax=self._state.absmax[first_scale : first_scale + scales],
                shape=old.shape,
                code=old.code,
                blocksize=old.blocksize,
                quant_type=old.quant_type,
                dtype=old.dtype,
            )
            first_byte += packed
            first_scale += scales


def can_join(layers: Sequence[Any]) -> bool:
    """Whether these are quantized alike and read inputs of one width, in whole blocks."""
    if not layers or not all(isinstance(layer, Linear4bit) for layer in layers):
        return False
    states: list[Any] = [layer.weight.quant_state for layer in layers]
    return (
        len({(state.shape[1], state.blocksize, state.quant_type, state.dtype) for state in states}) == 1
        and states[0].shape[1] % states[0].blocksize == 0
    )


def _scales(state: Any) -> torch.Tensor:
    if not state.nested:
        scales: torch.Tensor = state.absmax.float()
        return scales
    unnested: torch.Tensor = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return unnested.float()


def _joined_bias(layers: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    present = next(layer.bias for layer in layers if layer.bias is not None)
    parts = [present.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([part.to(dtype) for part in parts])
