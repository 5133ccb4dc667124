"""An adapter's tensors at a linear layer, as factors and as what changes besides.

It does: plain LoRA, DoRA's scale, biases, a weight that replaces the layer's, trained tokens of a head.
It does not: read files (`adapter_parts`) or place anything (`linear_changes`).

Letters: O output features, K input features, r rank.
"""

from __future__ import annotations

import torch

from basemodel.adapter_changes import LinearChange
from basemodel.adapter_parts import Parts, Reading
from basemodel.adapter_settings import CONFIG_FILE
from basemodel.description import ModuleShape
from basemodel.factor_layout import Factors

KNOWN = frozenset({"a", "b", "lora_bias", "magnitude", "weight", "carried", "original", "bias", "tokens"})
MERGE_FIRST = "has LoRA over a weight that is not the base's own; merge it before you save"


def read_linear(
    reading: Reading, path: str, parts: Parts, shape: ModuleShape
) -> tuple[Factors | None, LinearChange | None]:
    """What the adapter does at this layer. Raises AdapterFormatError."""
    reading.refuse_others(path, parts, KNOWN, "a linear layer")
    pair = _factors(reading, path, parts, shape) if "a" in parts or "b" in parts else None
    weight = _weight(reading, path, parts, shape)
    tokens = reading.tokens(path, parts, shape.in_features)
    if weight is not None or tokens is not None:
        if pair is not None:
            reading.refuse(f"'{path}' {MERGE_FIRST}")
        if tokens is not None and reading.weights.bias(path) is not None:
            reading.refuse(f"'{path}' has trained tokens beside a bias, which PEFT leaves out")
        bias = None if weight is None else _bias_beside(reading, path, parts, len(weight))
        return None, LinearChange(weight=weight, bias=bias, tokens=tokens)
    scale = None
    if "magnitude" in parts:
        scale = _dora_scale(reading, path, parts, pair, shape)
    elif pair is not None and reading.settings.use_dora:
        reading.refuse(f"'{path}' has no lora_magnitude_vector, and {CONFIG_FILE} sets use_dora")
    shift = _shift(reading, path, parts, scale, shape)
    if scale is None and shift is None:
        return pair, None
    outputs = shape.out_features  # both are kept, as they are on the device
    return pair, LinearChange(
        torch.ones(outputs) if scale is None else scale, torch.zeros(outputs) if shift is None else shift
    )


def _factors(reading: Reading, path: str, parts: Parts, shape: ModuleShape) -> Factors:
    a, b = reading.halves(path, parts, "a", "b")
    rank = a.shape[0]
    if a.shape != (rank, shape.in_features) or b.shape != (shape.out_features, rank) or rank == 0:
        reading.refuse(
            f"'{path}' has factors {tuple(a.shape)} and {tuple(b.shape)}; "
            f"the layer is {shape.in_features} -> {shape.out_features}"
        )
    return Factors(a, b, reading.scale(path, rank), reading.layout_of(path))


def _dora_scale(reading: Reading, path: str, parts: Parts, pair: Factors | None, shape: ModuleShape) -> torch.Tensor:
    """magnitude / |W + s B A|, by row."""
    if pair is None:
        reading.refuse(f"'{path}' has a lora_magnitude_vector without LoRA factors")
    reading.kinds.add("use_dora")
    magnitude = reading.shaped(path, "lora_magnitude_vector", parts["magnitude"], (shape.out_features,))
    scale = reading.scale(path, pair.rank)
    if "lora_bias" in parts:
        reading.refuse(f"'{path}' has both a lora_magnitude_vector and a bias of lora_B, which PEFT does not make")
    a, b = parts["a"].float(), parts["b"].float() * scale
    return reading.ratio(path, magnitude, reading.weights.row_norms(path, a, b))


def _shift(
    reading: Reading, path: str, parts: Parts, scale: torch.Tensor | None, shape: ModuleShape
) -> torch.Tensor | None:
    """What to add to scale * (W x + bias + LoRA), so that the bias is the adapter's own and is not scaled."""
    before = reading.weights.bias(path)
    if "bias" in parts and before is None:
        reading.refuse(f"'{path}' has a bias, and the base's layer has none")
    if "lora_bias" in parts and "a" not in parts:
        reading.refuse(f"'{path}' has a bias of lora_B without lora_B")
    is_scaled = scale is not None and before is not None
    if not is_scaled and not {"bias", "lora_bias"} & parts.keys():
        return None
    shift = torch.zeros(shape.out_features)
    if before is not None:
        after = before = before.detach().float().cpu()
        if "bias" in parts:
            reading.kinds.add("bias")
            own = reading.shaped(path, "bias", parts["bias"], (shape.out_features,))
            after = own.to(reading.own_dtype).float()
        shift = after - (before if scale is None else scale * before)
    if "lora_bias" in parts:
        reading.kinds.add("lora_bias")
        added = reading.shaped(path, "lora_B bias", parts["lora_bias"], (shape.out_features,)).float()
        shift = shift + added * reading.scale(path, parts["a"].shape[0])
    return shift


def _weight(reading: Reading, path: str, parts: Parts, shape: ModuleShape) -> torch.Tensor | None:
    """The weight [O', K] that replaces the layer's; None where there is none, or it is the base's own."""
    given = reading.own_weight(path, parts)
    if given is None:
        return None
    wanted = (shape.out_features, shape.in_features)
    own = reading.weights.weight(path)
    if own is not None and own.shape != wanted:  # Conv1D keeps its weight transposed, and so does PEFT
        given = given.T
    grows = path == reading.weights.head_path and given.ndim == 2 and given.shape[0] > wanted[0]
    weight = reading.shaped(path, "weight", given, (given.shape[0] if grows else wanted[0], wanted[1]))
    return weight.to(reading.own_dtype).contiguous()


def _bias_beside(reading: Reading, path: str, parts: Parts, outputs: int) -> torch.Tensor | None:
    """The bias beside a weight of its own: the adapter's, else the base's."""
    if "bias" in parts:
        reading.kinds.add("bias")
        return reading.shaped(path, "bias", parts["bias"], (outputs,)).to(reading.own_dtype)
    own = reading.weights.bias(path)
    if own is not None and len(own) != outputs:
        reading.refuse(f"'{path}' has more outputs than the base, and no bias for them")
    return None if own is None else own.detach().to(reading.own_dtype)
