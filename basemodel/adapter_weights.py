"""Reads a PEFT LoRA folder into tensors that fit a given base.

It does: read `adapter_config.json` and `adapter_model.safetensors`, match every tensor to a module of the base, work
out each module's scale, turn whatever else was trained into changes, and count it. No tensor is left over.
It does not: judge whether a folder may be published (`registry.adapter`), or put anything on a device (`attach`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from basemodel.adapter_changes import Changes, EmbeddingChange, LinearChange
from basemodel.adapter_parts import PREFIX, BaseWeights, Parts, Reading, read_parts, refuse_infinite
from basemodel.adapter_settings import read_settings
from basemodel.description import BaseDescription
from basemodel.embedding_parts import known_tokens, read_embedding, tied_change
from basemodel.factor_layout import Factors, LoraPair, lay_out_all
from basemodel.known_fits import KnownFits
from basemodel.linear_parts import read_linear

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in host memory. `rank` is its largest rank over the modules, and at least 1: an adapter is known by
    its rank rows. `changes` is None for an adapter that is LoRA on linear layers and nothing else.
    """

    modules: dict[str, LoraPair]
    rank: int
    adapter_bytes: int
    changes: Changes | None = None

    @property
    def whole_bytes(self) -> int:
        """Memory that it takes on the device beside its rank rows."""
        return 0 if self.changes is None else self.changes.whole_bytes


def read_adapter(
    folder: Path, base: BaseDescription, dtype: torch.dtype, weights: BaseWeights, known: KnownFits | None = None
) -> AdapterWeights:
    """Read and fit an adapter. Raises AdapterFormatError; nothing is attached in part.

    `known` is what was learned with the same base, type and weights.
    """
    pairs = None if known is None else known.read(folder)
    if pairs is not None:
        return _weights(pairs, None)
    own_dtype = DTYPES[base.quantization.compute_dtype]
    reading = Reading(read_settings(folder), base, weights, dtype, own_dtype)
    factors: dict[str, Factors] = {}
    linears: dict[str, LinearChange] = {}
    embeddings: dict[str, EmbeddingChange] = {}
    vectors: dict[str, Parts] = {}
    modules = read_parts(folder)
    for path, parts in sorted(modules.items()):
        shape = base.modules.get(path)
        if shape is None:
            vectors[path] = _vectors(reading, path, parts)
        elif shape.kind == "linear":
            own, change = read_linear(reading, path, parts, shape)
            if own is not None:
                factors[path] = own
            if change is not None:
                linears[path] = change
        else:
            table = read_embedding(reading, path, parts, shape)
            embeddings |= {} if table is None else {path: table}
    pairs = _laid_out(reading, factors)
    original = modules.get(weights.embedding_path, {}).get("original")
    changes = _changes(reading, pairs, linears, embeddings, vectors, original)
    if known is not None and changes is None:
        known.learn(folder, factors)
    return _weights(pairs, changes)


def _weights(pairs: dict[str, LoraPair], changes: Changes | None) -> AdapterWeights:
    size = sum(pair.pair_bytes for pair in pairs.values())
    rank = max((pair.rank for pair in pairs.values()), default=1)
    return AdapterWeights(pairs, rank, size + (changes.whole_bytes if changes else 0), changes)


def _laid_out(reading: Reading, factors: dict[str, Factors]) -> dict[str, LoraPair]:
    """The pairs. Raises AdapterFormatError where a value is not finite."""
    pairs, bad = lay_out_all(factors)
    if bad is not None:
        for half, name in ((factors[bad].a, "lora_A"), (factors[bad].b, "lora_B")):
            refuse_infinite(reading.settings.folder, f"{PREFIX}{bad}.{name}.weight", half)
        reading.refuse(f"'{bad}' holds values that are not finite once they are scaled")
    return pairs


def _changes(
    reading: Reading,
    pairs: dict[str, LoraPair],
    linears: dict[str, LinearChange],
    embeddings: dict[str, EmbeddingChange],
    vectors: dict[str, Parts],
    original: torch.Tensor | None,
) -> Changes | None:
    head, embedding = reading.weights.head_path, embeddings.get(reading.weights.embedding_path)
    if head is not None and reading.weights.is_tied and embedding is not None:
        tied = tied_change(reading, embedding, original, linears.get(head), has_lora=head in pairs)
        linears |= {} if tied is None else {head: tied}
    if not (linears or embeddings or vectors):
        return None
    top = linears.get(head or "", LinearChange())
    bottom = embedding or EmbeddingChange()
    known = known_tokens(reading, bottom.table, bottom.tokens)
    chosen = known_tokens(reading, top.weight, top.tokens)
    if chosen > known:
        reading.refuse(f"its head chooses from {chosen} tokens, and its embedding knows {known}")
    return Changes(linears, embeddings, vectors, tuple(sorted(reading.kinds)), known, chosen)


def _vectors(reading: Reading, path: str, parts: Parts) -> Parts:
    """The parameters of a module that is neither a linear layer nor an embedding: a norm."""
    found = {}
    for name, tensor in parts.items():
        if name == "original":
            continue
        length = reading.base.vectors.get(f"{path}.{name}")
        if length is None:
            reading.refuse(f"'{path}.{name}' is no tensor of base {reading.base.name}")
        reading.kinds.add("modules_to_save" if name == "weight" else "bias")
        found[name] = reading.shaped(path, name, tensor, (length,)).to(reading.own_dtype)
    return found
