"""An adapter's tensors at an embedding, and what a tied head makes of them.

It does: a table that replaces the base's or has rows more, trained tokens, LoRA and DoRA on the table.
It does not: read files (`adapter_parts`) or place anything (`changed_modules`).

Letters: V rows of the table, H its width, r rank.
"""

from __future__ import annotations

import torch

from basemodel.adapter_changes import EmbeddingChange, LinearChange, TokenRows
from basemodel.adapter_parts import Parts, Reading
from basemodel.adapter_settings import CONFIG_FILE
from basemodel.description import ModuleShape
from basemodel.linear_parts import MERGE_FIRST

KNOWN = frozenset({"embedding_a", "embedding_b", "magnitude", "weight", "carried", "original", "tokens"})


def read_embedding(reading: Reading, path: str, parts: Parts, shape: ModuleShape) -> EmbeddingChange | None:
    """What the adapter does at this embedding. Raises AdapterFormatError."""
    reading.refuse_others(path, parts, KNOWN, "an embedding")
    rows, width = shape.in_features, shape.out_features
    table = reading.own_weight(path, parts)
    if table is not None:
        if path == reading.weights.embedding_path:  # the vocabulary may grow
            rows = max(rows, table.shape[0])
        table = reading.shaped(path, "weight", table, (rows, width)).to(reading.own_dtype)
    tokens = reading.tokens(path, parts, width)
    is_adapted = "embedding_a" in parts or "embedding_b" in parts
    if is_adapted and tokens is not None:
        reading.refuse(f"'{path}' has both LoRA and trained tokens")
    if is_adapted:
        return _with_factors(reading, path, parts, table, rows, width)
    return None if table is None and tokens is None else EmbeddingChange(table, tokens)


def tied_change(
    reading: Reading,
    embedding: EmbeddingChange,
    original: torch.Tensor | None,
    own: LinearChange | None,
    *,
    has_lora: bool,
) -> LinearChange | None:
    """What becomes of a head that shares the embedding's weights, given the head's `own` change.

    It takes over trained tokens, and a table that was saved along. A table of `modules_to_save` is a copy: PEFT
    parts it from the head, which keeps the `original`.
    """
    path = reading.weights.embedding_path
    table = embedding.table
    if reading.settings.is_saved_whole(path):
        table = None if original is None else original.to(reading.own_dtype)
    if table is None and embedding.tokens is None:
        return own
    if own is not None and (own.tokens is not None or embedding.tokens is None):
        return own  # both were saved: with tokens, PEFT does so where their ids differ
    if own is not None or has_lora:
        reading.refuse(
            f"'{reading.weights.head_path}' {MERGE_FIRST}"
            if has_lora
            else f"'{path}' and the head tied to it were both trained, each in another way"
        )
    return LinearChange(weight=table, tokens=embedding.tokens)


def known_tokens(reading: Reading, table: torch.Tensor | None, tokens: TokenRows | None) -> int:
    """Rows of a table with the tokens after its end. Raises AdapterFormatError where these leave a gap."""
    size = reading.base.vocabulary_size
    rows = size if table is None else max(len(table), size)
    added = [] if tokens is None else tokens.ids[tokens.ids >= rows].tolist()
    if added != list(range(rows, rows + len(added))):
        reading.refuse(f"its trained tokens leave a gap after the vocabulary of {rows}")
    return rows + len(added)


def _with_factors(
    reading: Reading, path: str, parts: Parts, table: torch.Tensor | None, rows: int, width: int
) -> EmbeddingChange:
    half_a, half_b = reading.halves(path, parts, "embedding_a", "embedding_b")
    rank = half_a.shape[0]
    if half_a.shape != (rank, rows) or half_b.shape != (width, rank) or rank == 0:
        reading.refuse(
            f"'{path}' has factors {tuple(half_a.shape)} and {tuple(half_b.shape)}; "
            f"the embedding has {rows} rows of {width}"
        )
    reading.kinds.add("lora_embedding")
    a = half_a.T.to(reading.dtype).contiguous()
    b = (half_b.float() * reading.scale(path, rank)).T.to(reading.dtype).contiguous()
    scale = None
    if "magnitude" in parts:
        reading.kinds.add("use_dora")
        magnitude = reading.shaped(path, "lora_magnitude_vector", parts["magnitude"], (width,))
        scale = reading.ratio(path, magnitude, reading.weights.column_norms(path, table, a.float(), b.float()))
    elif reading.settings.use_dora:
        reading.refuse(f"'{path}' has no lora_magnitude_vector, and {CONFIG_FILE} sets use_dora")
    return EmbeddingChange(table=table, a=a, b=b, scale=scale)
