"""What an adapter changes besides low-rank factors, as plain values.

It does: name the changes of a linear layer, an embedding, and any other module that has parameters; count their bytes.
It does not: read files (`adapter_weights`) or apply anything (`linear_changes`, `changed_modules`).

Letters: O output features, K input features, V rows of a table, H its width, r rank, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import torch


@dataclass(frozen=True)
class TokenRows:
    """Rows of a table that are replaced: `ids` [n] int64, ascending, and `values` [n, H]."""

    ids: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class LinearChange:
    """At a linear layer: y becomes scale * y + shift ([O] float32 each; None: 1 and 0), where y is the layer's output
    with its bias and its LoRA. DoRA (arXiv 2402.09353) is a scale, a trained bias a shift.

    `weight` [O', K] with `bias` [O'] replaces the layer, LoRA included, and may have more outputs than the base (added
    vocabulary); `tokens` replaces some of its rows.
    """

    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    tokens: TokenRows | None = None


@dataclass(frozen=True)
class EmbeddingChange:
    """At an embedding: `table` [V', H] replaces the base's, `tokens` some of its rows; then (row + a b) * scale, with
    a [V', r] and b [r, H] (the LoRA scale is in b) and scale [H] float32 (DoRA). None: not changed.
    """

    table: torch.Tensor | None = None
    tokens: TokenRows | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def to(self, device: torch.device) -> EmbeddingChange:
        """The same on a device."""
        table, a, b, scale = (
            None if each is None else each.to(device) for each in (self.table, self.a, self.b, self.scale)
        )
        tokens = self.tokens and TokenRows(self.tokens.ids.to(device), self.tokens.values.to(device))
        return EmbeddingChange(table, tokens, a, b, scale)


@dataclass(frozen=True)
class Changes:
    """All changes of one adapter besides LoRA on linear layers, by module path; `vectors` holds, by module, parameters
    by name (the weight of a norm). Token ids below `vocabulary_size` may be given to it, and it chooses among those
    below `head_size`: the base's own count, or more. `kinds` are PEFT's own words for what it is, for messages.
    """

    linears: dict[str, LinearChange]
    embeddings: dict[str, EmbeddingChange]
    vectors: dict[str, dict[str, torch.Tensor]]
    kinds: tuple[str, ...]
    vocabulary_size: int
    head_size: int

    @property
    def whole_bytes(self) -> int:
        """Memory that all this takes beside the rank rows; a tensor that two modules share counts once."""
        held = {id(tensor): tensor.nbytes for tensor in _tensors((self.linears, self.embeddings, self.vectors))}
        return sum(held.values())


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in _tensors(getattr(value, field.name))]
    return []
