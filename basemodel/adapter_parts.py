"""The tensors of an adapter file by module, and what every reader of them must check.

It does: sort names, read halves, ranks, scales and shapes, and refuse with the module's name.
It does not: know what a linear layer or an embedding makes of them (`linear_parts`, `embedding_parts`).

Names of PEFT 0.21, after `base_model.model.<path>`: `.lora_A.weight` [r, K], `.lora_B.weight` [O, r], `.lora_B.bias`,
`.lora_magnitude_vector` [O], `.lora_embedding_A` [r, V], `.lora_embedding_B` [H, r], `.weight` and `.bias` of what was
saved whole, `.base_layer.*` of what is also adapted, `.token_adapter.trainable_tokens_delta` [n, H].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from safetensors import SafetensorError

from basemodel.adapter_changes import TokenRows
from basemodel.adapter_settings import CONFIG_FILE, AdapterSettings, unreadable
from basemodel.description import BaseDescription
from basemodel.errors import AdapterFormatError
from basemodel.factor_layout import FactorLayout, is_finite_throughout
from basemodel.tensor_file import map_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Endings of names and what they are: the most frequent first, then the longest. "carried" is a base's weight that was
# saved along. Of a module of `modules_to_save` whose vocabulary has grown PEFT saves the trained weight twice, and the
# one before training.
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".modules_to_save.weight": "copy",
    ".modules_to_save.bias": "copy of bias",
    ".original_module.weight": "original",
    ".original_module.bias": "original bias",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".token_adapter.base_layer.weight": "carried",
    ".lora_magnitude_vector": "magnitude",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".base_layer.weight": "carried",
    ".base_layer.bias": "bias",
    ".lora_B.bias": "lora_bias",
    ".weight": "weight",
    ".bias": "bias",
}

# Parts that are checked for values that are not finite where they are laid out, in the same pass.
CHECKED_LATER = {"a", "b"}

Parts = dict[str, torch.Tensor]


class BaseWeights(Protocol):
    """What reading must know of the base's own weights: `basemodel.site_weights`. Asked from any thread."""

    embedding_path: str
    head_path: str | None
    is_tied: bool

    def row_norms(self, path: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The length of each row of W + b a of a linear layer: a [r, K], b [O, r], float32 -> [O] float32."""

    def column_norms(self, path: str, table: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The length of each column of an embedding's table + a b: a [V, r], b [r, H], float32 -> [H] float32."""

    def layout(self, path: str) -> FactorLayout | None:
        """How adapters are kept at a linear layer; None where nothing asks for a layout of its own."""

    def bias(self, path: str) -> torch.Tensor | None:
        """A linear layer's bias [O], if it has one."""

    def weight(self, path: str) -> torch.Tensor | None:
        """A weight that is not quantized, as a PEFT model would save it; None where it is."""


@dataclass
class Reading:
    """One adapter while it is read. `dtype` is that of factors, `own_dtype` that of the base's unquantized weights.

    The readers of parts add to `kinds`: PEFT's words for what the adapter is besides LoRA.
    """

    settings: AdapterSettings
    base: BaseDescription
    weights: BaseWeights
    dtype: torch.dtype
    own_dtype: torch.dtype
    kinds: set[str] = field(default_factory=set)

    def refuse(self, reason: str) -> NoReturn:
        """Raises AdapterFormatError."""
        raise AdapterFormatError(self.settings.folder, reason)

    def refuse_others(self, path: str, parts: Parts, known: frozenset[str], what: str) -> None:
        """Refuse parts that this kind of module cannot have."""
        for part in sorted(parts.keys() - known):
            self.refuse(f"'{path}' is {what}, and has tensors of another kind ({part})")

    def halves(self, path: str, parts: Parts, first: str, second: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves of a pair of factors."""
        names = {"a": "lora_A", "b": "lora_B", "embedding_a": "lora_embedding_A", "embedding_b": "lora_embedding_B"}
        if first not in parts or second not in parts:
            self.refuse(f"'{path}' has {names[first if first in parts else second]} without its other half")
        a, b = parts[first], parts[second]
        if a.ndim != 2 or b.ndim != 2:
            self.refuse(f"'{path}' has factors of {a.ndim} and {b.ndim} dimensions, not two")
        return a, b

    def scale(self, path: str, rank: int) -> float:
        """The factor on a module's product, after its rank was compared with the config."""
        if rank != self.settings.rank_of(path):
            self.refuse(f"'{path}' has rank {rank}, which {CONFIG_FILE} does not say")
        return self.settings.scale_of(path, rank)

    def layout_of(self, path: str) -> FactorLayout:
        """How a linear layer's factors are to be kept."""
        return self.weights.layout(path) or FactorLayout(self.dtype)

    def shaped(self, path: str, what: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor, if it has this shape."""
        if tuple(tensor.shape) != shape:
            self.refuse(f"'{path}' has a {what} of shape {tuple(tensor.shape)}, and the base needs {shape}")
        return tensor

    def ratio(self, path: str, magnitude: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """magnitude / norms."""
        ratio = magnitude.float() / norms
        if not torch.isfinite(ratio).all():
            self.refuse(f"'{path}' has a row of length 0, so that its magnitude has no meaning")
        return ratio

    def own_weight(self, path: str, parts: Parts) -> torch.Tensor | None:
        """A weight that was saved, if it is another than the base's own."""
        if {"weight", "carried"} <= parts.keys():
            self.refuse(f"'{path}' has two weights of its own")
        given = parts.get("weight", parts.get("carried"))
        if given is None:
            return None
        own = self.weights.weight(path)
        if own is not None and own.shape == given.shape and torch.equal(own.cpu(), given.to(own.dtype)):
            return None
        self.kinds.add("modules_to_save")
        return given

    def tokens(self, path: str, parts: Parts, width: int) -> TokenRows | None:
        """Trained tokens, if there are any here."""
        if "tokens" not in parts:
            return None
        self.kinds.add("trainable_token_indices")
        ids = torch.tensor(self.settings.tokens_of(path), dtype=torch.long)
        values = self.shaped(path, "matrix of trained tokens", parts["tokens"], (len(ids), width)).to(self.own_dtype)
        if len(ids.unique()) != len(ids) or len(ids) == 0:
            self.refuse(f"'{path}' has trained tokens whose ids repeat, or none")
        order = ids.argsort()
        return TokenRows(ids[order], values[order].contiguous())


def read_parts(folder: Path) -> dict[str, Parts]:
    """The adapter's tensors by module path and part. Raises AdapterFormatError for a tensor that is neither."""
    try:
        tensors = map_tensors(folder / WEIGHTS_FILE)
    except OSError as error:
        raise unreadable(folder, WEIGHTS_FILE, error) from error
    except SafetensorError as error:
        raise AdapterFormatError(folder, f"{WEIGHTS_FILE} is damaged ({error})") from error
    modules: dict[str, Parts] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in PARTS if key.endswith(ending)), None)
        if ending is None or not key.startswith(PREFIX):
            raise AdapterFormatError(folder, f"tensor '{key}' is not a part of a LoRA adapter that is known here")
        if PARTS[ending] not in CHECKED_LATER:
            refuse_infinite(folder, key, tensor)
        path = key[len(PREFIX) : -len(ending)]
        parts = modules.setdefault(path, {})
        if PARTS[ending] in parts:
            raise AdapterFormatError(folder, f"'{path}' has its {PARTS[ending]} twice")
        parts[PARTS[ending]] = tensor
    if not modules:
        raise AdapterFormatError(folder, f"{WEIGHTS_FILE} holds no tensors, so it would have no effect")
    for path, parts in modules.items():
        _drop_copies(folder, path, parts)
    return modules


def refuse_infinite(folder: Path, key: str, tensor: torch.Tensor) -> None:
    """Raises AdapterFormatError for a tensor with a value that is not finite."""
    if not is_finite_throughout(tensor):
        raise AdapterFormatError(folder, f"tensor '{key}' holds values that are not finite")


def _drop_copies(folder: Path, path: str, parts: Parts) -> None:
    for copy, name in (("copy", "weight"), ("copy of bias", "bias")):
        if copy in parts and (name not in parts or not torch.equal(parts.pop(copy), parts[name])):
            raise AdapterFormatError(folder, f"'{path}' has two trained tensors '{name}' that are not the same")
    parts.pop("original bias", None)
