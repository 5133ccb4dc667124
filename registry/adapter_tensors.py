"""The tensors of an adapter, sorted by module and part, and checked against the config and the base.

It does: everything that PEFT saves besides LoRA factors of linear layers: DoRA magnitudes, biases, LoRA on embeddings,
whole weights, trained and added tokens. The factors themselves are `lora_tensors`.
It does not: read values; what only they can tell (a weight saved along that is not the base's) the engine says at load.

Names of PEFT 0.21, after the module's path; r rank, O outputs, K inputs, V rows of an embedding, H its width:
.lora_magnitude_vector [O]   .lora_B.bias [O]   .lora_embedding_A [r, V]   .lora_embedding_B [H, r]
.weight and .bias of what was saved whole   .base_layer.* of what is adapted, too   .token_adapter.* [n, H]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from registry.adapter_config import CONFIG_FILE, AdapterConfig
from registry.base import BaseModule, BaseRecord
from registry.errors import RejectedAdapterError
from registry.lora_tensors import A_SUFFIX, B_SUFFIX, KEY_PREFIX, LoraPair, pair_tensors
from registry.reasons import RejectReason
from registry.tensor_file import Tensor

# Longest first. "carried" is a base's weight that was saved along; "copy" and "original" stand beside a weight of
# `modules_to_save` whose vocabulary has grown.
PARTS = {
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".token_adapter.base_layer.weight": "carried",
    ".original_module.weight": "original",
    ".original_module.bias": "original_bias",
    ".modules_to_save.weight": "copy",
    ".modules_to_save.bias": "copy_bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".base_layer.weight": "carried",
    ".base_layer.bias": "bias",
    ".lora_B.bias": "lora_bias",
    ".weight": "weight",
    ".bias": "bias",
}
KINDS = {
    "tokens": "trainable_token_indices",
    "magnitude": "use_dora",
    "embedding_a": "lora_embedding",
    "bias": "bias",
    "lora_bias": "lora_bias",
    "weight": "modules_to_save",
}

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter file holds: LoRA on linear layers, and by module whatever else."""

    pairs: Mapping[str, LoraPair]
    parts: Mapping[str, Parts]

    @property
    def adapted(self) -> Mapping[str, LoraPair]:
        """Every LoRA pair, those of embeddings too, by module."""
        tables = {
            module: LoraPair(module, parts["embedding_a"], parts["embedding_b"])
            for module, parts in self.parts.items()
            if {"embedding_a", "embedding_b"} <= parts.keys()
        }
        return {**self.pairs, **tables}

    def vocabulary_size(self, config: AdapterConfig, base: BaseRecord) -> int:
        """How many tokens it knows: the base's, or more."""
        size = base.vocabulary_size
        for module, parts in self.parts.items():
            if module in base.modules and base.modules[module].kind == "embedding":
                tables = [parts[part].shape[0] for part in ("weight", "carried") if part in parts]
                size = max(
                    [size, *tables, *(token + 1 for token in config.tokens_of(module) or () if "tokens" in parts)]
                )
        return size

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the adapter is besides LoRA on linear layers, in PEFT's words."""
        return tuple(sorted({KINDS[part] for parts in self.parts.values() for part in parts if part in KINDS}))


def sort_tensors(tensors: tuple[Tensor, ...], *, file: str) -> AdapterTensors:
    """Raises RejectedAdapterError for a tensor that is no part of an adapter."""
    if not tensors:
        raise RejectedAdapterError(RejectReason.NO_TENSORS, "it holds no tensors", file=file)
    factors = [tensor for tensor in tensors if tensor.name.endswith((A_SUFFIX, B_SUFFIX))]
    parts: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if tensor in factors:
            continue
        name = tensor.name
        if not name.startswith(KEY_PREFIX):
            _refuse(RejectReason.WRONG_KEY_PREFIX, f"tensor {name!r} does not begin with {KEY_PREFIX!r}", file, tensor)
        ending = next((ending for ending in PARTS if name.endswith(ending)), None)
        module = "" if ending is None else name[len(KEY_PREFIX) : -len(ending)]
        if ending is None or not module or ".lora_" in module:
            _refuse(RejectReason.UNEXPECTED_TENSOR, f"tensor {name!r} is no part of a LoRA adapter", file, tensor)
        if not tensor.shape or 0 in tensor.shape:
            _refuse(RejectReason.UNEXPECTED_TENSOR, f"tensor {name!r} has the shape {list(tensor.shape)}", file, tensor)
        if parts.setdefault(module, {}).setdefault(PARTS[ending], tensor) is not tensor:
            _refuse(RejectReason.UNEXPECTED_TENSOR, f"module {module!r} has its {PARTS[ending]} twice", file, tensor)
    sorted_out = AdapterTensors(pair_tensors(tuple(factors), file=file), parts)
    if not sorted_out.adapted:
        raise RejectedAdapterError(RejectReason.NO_TENSORS, "it holds no LoRA factors", file=file)
    return sorted_out


def check_parts(tensors: AdapterTensors, config: AdapterConfig, base: BaseRecord, *, file: str) -> None:
    """Check everything besides LoRA on linear layers. Raises RejectedAdapterError."""
    check = _Check(tensors, config, base, file)
    for module, parts in tensors.parts.items():
        layer = base.modules.get(module)
        if layer is None:
            check.vectors(module, parts)
        elif layer.kind == "linear":
            check.linear(module, parts, layer)
        else:
            check.embedding(module, parts, layer)
    check.completeness()


@dataclass(frozen=True)
class _Check:
    tensors: AdapterTensors
    config: AdapterConfig
    base: BaseRecord
    file: str

    def linear(self, module: str, parts: Parts, layer: BaseModule) -> None:
        """Magnitude, biases, a weight of its own, trained tokens of a head."""
        self._refuse_parts(module, parts, {"embedding_a", "embedding_b"}, "is a linear layer")
        pair = self.tensors.pairs.get(module)
        for name in ("magnitude", "lora_bias"):
            if name in parts:
                self._shape(parts[name], (layer.out_features,))
                if pair is None:
                    self._refuse(RejectReason.INCOMPLETE_PAIR, f"module {module!r} has no LoRA factors", parts[name])
        if {"magnitude", "lora_bias"} <= parts.keys():
            detail = f"module {module!r} has a magnitude and a bias of lora_B, which PEFT does not make"
            self._refuse(RejectReason.UNEXPECTED_TENSOR, detail, parts["lora_bias"])
        is_head = layer.out_features == self.base.vocabulary_size
        rows = self._whole(module, parts, (layer.out_features, layer.in_features), grows=is_head)
        if "bias" in parts:
            self._vector(module, "bias", parts["bias"], rows if is_head else layer.out_features)
        if pair is not None and ("weight" in parts or rows != layer.out_features or "tokens" in parts):
            detail = f"module {module!r} has LoRA over a weight that is not the base's own"
            self._refuse(RejectReason.UNSUPPORTED_MODULES_TO_SAVE, detail, next(iter(parts.values())))
        self._tokens(module, parts, layer.in_features)

    def embedding(self, module: str, parts: Parts, layer: BaseModule) -> None:
        """A table of its own, LoRA and DoRA on it, trained tokens."""
        self._refuse_parts(module, parts, {"lora_bias", "bias", "original_bias", "copy_bias"}, "is an embedding")
        grows = layer.in_features == self.base.vocabulary_size
        rows = self._whole(module, parts, (layer.in_features, layer.out_features), grows=grows)
        self._tokens(module, parts, layer.out_features)
        if "magnitude" in parts:
            self._shape(parts["magnitude"], (layer.out_features,))
        halves = [parts.get("embedding_a"), parts.get("embedding_b")]
        if halves == [None, None] and "magnitude" not in parts:
            return
        if None in halves or "tokens" in parts:
            detail = f"module {module!r} has one half of a LoRA pair, or one beside trained tokens"
            self._refuse(RejectReason.INCOMPLETE_PAIR, detail, next(iter(parts.values())))
        rank = self.config.rank_of(module)
        self._shape(parts["embedding_a"], (rank, rows), RejectReason.RANK_MISMATCH)
        self._shape(parts["embedding_b"], (layer.out_features, rank), RejectReason.RANK_MISMATCH)

    def vectors(self, module: str, parts: Parts) -> None:
        """The parameters of a norm."""
        self._refuse_parts(module, parts, set(PARTS.values()) - _VECTOR_PARTS, "is no layer of the base")
        for part in ("weight", "bias"):
            if part in parts:
                self._vector(module, part, parts[part], None)

    def completeness(self) -> None:
        """What the config promises is there."""
        for pair in self.tensors.adapted.values():
            if self.config.use_dora and "magnitude" not in self.tensors.parts.get(pair.module, {}):
                detail = f"{CONFIG_FILE} sets use_dora, and module {pair.module!r} has no magnitude"
                self._refuse(RejectReason.INCOMPLETE_PAIR, detail, pair.a)
        saved = [module for module, parts in self.tensors.parts.items() if {"weight", "bias"} & parts.keys()]
        for name in self.config.saved_modules:
            if not any(prefix.endswith(name) for module in saved for prefix in _prefixes(module)):
                detail = f"modules_to_save lists {name!r}, and it has no tensors"
                raise RejectedAdapterError(RejectReason.TARGETS_MISMATCH, detail, file=self.file)

    def _whole(self, module: str, parts: Parts, shape: tuple[int, int], *, grows: bool) -> int:
        """Check weights of a module's own; the rows that it has with them."""
        rows = shape[0]
        for part in ("weight", "carried", "original", "copy"):
            tensor = parts.get(part)
            if tensor is None:
                continue
            grown = grows and len(tensor.shape) == 2 and tensor.shape[0] > shape[0]
            if tensor.shape != shape and tensor.shape != shape[::-1]:  # Conv1D keeps it the other way round
                self._shape(tensor, (tensor.shape[0] if grown else shape[0], shape[1]))
            rows = max(rows, tensor.shape[0]) if grown else rows
        if {"weight", "carried"} <= parts.keys():
            self._refuse(RejectReason.UNEXPECTED_TENSOR, f"module {module!r} has two weights", parts["carried"])
        return rows

    def _tokens(self, module: str, parts: Parts, width: int) -> None:
        if "tokens" not in parts:
            return
        ids = self.config.tokens_of(module)
        tensor = parts["tokens"]
        if ids is None or len(set(ids)) != len(ids) or tensor.shape != (len(ids), width):
            detail = f"tensor {tensor.name!r} of shape {list(tensor.shape)} is not for the ids in {CONFIG_FILE}"
            self._refuse(RejectReason.UNSUPPORTED_TRAINABLE_TOKENS, detail, tensor)
        weight = parts.get("carried", parts.get("weight"))
        end = max(self.base.vocabulary_size, 0 if weight is None else weight.shape[0])
        added = sorted(token for token in ids if token >= end)
        if added != list(range(end, end + len(added))):
            detail = f"the trained tokens of {module!r} leave a gap after token {end - 1}"
            self._refuse(RejectReason.UNSUPPORTED_TRAINABLE_TOKENS, detail, tensor)

    def _vector(self, module: str, part: str, tensor: Tensor, expected: int | None) -> None:
        length = self.base.vectors.get(f"{module}.{part}")
        if length is None:
            known = "" if self.base.vectors else "; it was registered by an earlier release: register it once more"
            detail = f"base {self.base.name!r} ({self.base.architecture}) has no tensor {module + '.' + part!r}{known}"
            self._refuse(RejectReason.UNKNOWN_MODULE, detail, tensor)
        self._shape(tensor, (length if expected is None else expected,))

    def _shape(
        self, tensor: Tensor, expected: tuple[int, ...], reason: RejectReason = RejectReason.SHAPE_MISMATCH
    ) -> None:
        if tensor.shape != expected:
            detail = (
                f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, and base {self.base.name!r} with "
                f"{CONFIG_FILE} needs {list(expected)}"
            )
            self._refuse(reason, detail, tensor)

    def _refuse_parts(self, module: str, parts: Parts, foreign: set[str], what: str) -> None:
        for part in sorted(parts.keys() & foreign):
            detail = f"tensor {parts[part].name!r} is for a module that {what} ({module!r})"
            self._refuse(RejectReason.UNKNOWN_MODULE, detail, parts[part])

    def _refuse(self, reason: RejectReason, detail: str, tensor: Tensor) -> NoReturn:
        _refuse(reason, detail, self.file, tensor)


_VECTOR_PARTS = {"weight", "bias", "original", "original_bias", "copy", "copy_bias"}


def _prefixes(module: str) -> list[str]:
    """The module and those that it is a part of."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _refuse(reason: RejectReason, detail: str, file: str, tensor: Tensor) -> NoReturn:
    raise RejectedAdapterError(reason, detail, file=file, tensor=tensor.name)
