"""Reads a PEFT LoRA folder into tensors that fit a given base.

It does: read `adapter_config.json` and `adapter_model.safetensors`, match every tensor to a linear layer of the base,
work out each module's scale, and count what was attached.
It does not: judge whether a folder may be published (`registry.adapter`), or put anything on a device (`attach`).
Source of the layout: facts of PEFT 0.21 (`base_model.model.<path>.lora_A.weight` [r, H], `lora_B.weight` [O, r]).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from basemodel.description import BaseDescription
from basemodel.errors import AdapterFormatError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])\.weight")
PLAIN_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class LoraPair:
    """One module's factors: a [H, r], the transposed lora_A, and b [r, O], the transposed lora_B times the scale."""

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Rows of this pair."""
        return self.b.shape[0]


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in host memory. `rank` is its largest rank over the modules."""

    modules: dict[str, LoraPair]
    rank: int
    adapter_bytes: int


def read_adapter(folder: Path, base: BaseDescription, dtype: torch.dtype) -> AdapterWeights:
    """Read and fit an adapter. Raises AdapterFormatError; nothing is attached in part."""
    config = _read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except OSError as error:
        raise _unreadable(folder, WEIGHTS_FILE, error) from error
    except SafetensorError as error:
        raise AdapterFormatError(folder, f"{WEIGHTS_FILE} is damaged ({error})") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None:
            raise AdapterFormatError(folder, f"tensor '{key}' is not a LoRA factor of a linear layer")
        halves.setdefault(found["path"], {})[found["half"]] = tensor
    if not halves:
        raise AdapterFormatError(folder, f"{WEIGHTS_FILE} holds no LoRA factors, so it would have no effect")
    modules = {path: _pair(folder, path, half, base, config, dtype) for path, half in sorted(halves.items())}
    size = sum(t.numel() * t.element_size() for pair in modules.values() for t in (pair.a, pair.b))
    return AdapterWeights(modules, max(pair.rank for pair in modules.values()), size)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except OSError as error:
        raise _unreadable(folder, CONFIG_FILE, error) from error
    except ValueError as error:
        raise AdapterFormatError(folder, f"{CONFIG_FILE} is not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterFormatError(folder, f"{CONFIG_FILE} is not of peft_type LORA")
    for name in ("use_dora", "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices"):
        if config.get(name):
            raise AdapterFormatError(folder, f"{CONFIG_FILE} sets {name}, which this release does not serve")
    return config


def _unreadable(folder: Path, file: str, error: OSError) -> AdapterFormatError:
    """Says why, without the path that the operating system's own text carries: it reaches clients."""
    return AdapterFormatError(folder, f"{file} cannot be read ({error.strerror or type(error).__name__})")


def _pair(
    folder: Path,
    path: str,
    half: dict[str, torch.Tensor],
    base: BaseDescription,
    config: dict[str, Any],
    dtype: torch.dtype,
) -> LoraPair:
    shape = base.modules.get(path)
    if shape is None or shape.kind != "linear":
        raise AdapterFormatError(folder, f"'{path}' is no linear layer of base {base.name}")
    if set(half) != {"A", "B"}:
        raise AdapterFormatError(folder, f"'{path}' has lora_{min(half)} without its other half")
    a, b = half["A"], half["B"]
    rank = a.shape[0]
    if a.shape != (rank, shape.in_features) or b.shape != (shape.out_features, rank) or rank == 0:
        raise AdapterFormatError(
            folder,
            f"'{path}' has factors {tuple(a.shape)} and {tuple(b.shape)}; "
            f"the layer is {shape.in_features} -> {shape.out_features}",
        )
    if rank != _setting(folder, config, path, "r", "rank_pattern"):
        raise AdapterFormatError(folder, f"'{path}' has rank {rank}, which {CONFIG_FILE} does not say")
    alpha = _setting(folder, config, path, "lora_alpha", "alpha_pattern")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    pair = LoraPair(a.T.to(dtype).contiguous(), (b.float() * scale).T.to(dtype).contiguous())
    if not (torch.isfinite(pair.a).all() and torch.isfinite(pair.b).all()):
        raise AdapterFormatError(folder, f"'{path}' holds values that are not finite")
    return pair


def _setting(folder: Path, config: dict[str, Any], path: str, name: str, patterns: str) -> float:
    """A module's rank or alpha: the first pattern that is the end of its path, else the general one.

    PEFT reads patterns as regular expressions. Only those that are plain paths are accepted: an adapter is data, and
    its expressions are not run.
    """
    for pattern, value in (config.get(patterns) or {}).items():
        if PLAIN_PATTERN.fullmatch(pattern) is None:
            raise AdapterFormatError(folder, f"{patterns} has '{pattern}', which is not a plain module path")
        plain = pattern.removeprefix("^")
        if path == plain or (not pattern.startswith("^") and path.endswith("." + plain)):
            return _number(folder, value, patterns)
    return _number(folder, config.get(name), name)


def _number(folder: Path, value: object, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise AdapterFormatError(folder, f"{name} is {value!r}, not a positive number")
    return value
