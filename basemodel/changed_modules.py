"""Stands in for an embedding, or a module with a few parameters (a norm), that some resident adapter changes.

It does: compute the base's module for all tokens, and the tokens of a changing adapter again with what is its own.
It does not: exist where no adapter asked for it: `attach.AdapterSites` puts it there with the first one.

Every token is computed by itself, in an order that its neighbours do not change.

Letters: T tokens of the step, t those of one span, H width, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from basemodel.adapter_changes import EmbeddingChange, TokenRows
from basemodel.lora_ops import ChangedTokens

Current = Callable[[], ChangedTokens | None]


class ChangedEmbedding(nn.Module):
    """An embedding and what adapters change, by slot. ids [1, T] -> [1, T, H]. Only the engine loop changes it."""

    def __init__(self, base: nn.Module, current: Current) -> None:
        """`current` says which tokens of this step belong to adapters that change more than linear layers."""
        super().__init__()
        self.base = base
        self.changes: dict[int, EmbeddingChange] = {}
        self._current = current

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The base's rows, and its own for every token of a changing adapter."""
        changed = self._current()
        if changed is None or changed.slots.isdisjoint(self.changes):
            out: torch.Tensor = self.base(ids)
            return out
        out = self.base(ids.clamp(max=len(self.weight) - 1))  # an added token has no row in the base
        for span, slot in changed.spans:
            if slot in self.changes:
                out[:, span] = self._rows(self.changes[slot], ids[:, span]).to(out.dtype)
        return out

    @property
    def weight(self) -> torch.Tensor:
        """The base's table, for model code that looks at its type or device."""
        found = self.base.weight
        assert isinstance(found, torch.Tensor)
        return found

    def _rows(self, change: EmbeddingChange, ids: torch.Tensor) -> torch.Tensor:
        """ids [1, t] -> [1, t, H]."""
        if change.table is not None:
            out: torch.Tensor = functional_call(self.base, {"weight": change.table}, (ids,))
        else:
            out = self.base(ids.clamp(max=len(self.weight) - 1))
        if change.tokens is not None:
            out = self._replaced(out, ids, change.tokens)
        if change.a is not None and change.b is not None:
            out = out.float() + self._scaled(_sum_of_ranks(change.a[ids[0]].float(), change.b.float()))
        if change.scale is not None:
            out = out * change.scale
        return out

    def _replaced(self, out: torch.Tensor, ids: torch.Tensor, tokens: TokenRows) -> torch.Tensor:
        place = torch.searchsorted(tokens.ids, ids).clamp(max=len(tokens.ids) - 1)
        is_own = (tokens.ids[place] == ids)[..., None]
        return torch.where(is_own, self._scaled(tokens.values[place]), out)

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """Gemma's embedding multiplies its rows by a constant, in the type of the rows."""
        factor = getattr(self.base, "embed_scale", None)
        return rows if factor is None else rows * torch.as_tensor(factor, device=rows.device).to(self.weight.dtype)


class ChangedVectors(nn.Module):
    """A norm (or any module that treats each token by itself) and the parameters of adapters, by slot."""

    def __init__(self, base: nn.Module, current: Current) -> None:
        """`current` as for `ChangedEmbedding`."""
        super().__init__()
        self.base = base
        self.changes: dict[int, dict[str, torch.Tensor]] = {}
        self._current = current

    def forward(self, x: torch.Tensor, *rest: object) -> torch.Tensor:
        """x [1, T, ...], or [1, heads, T, D], as in the base."""
        out: torch.Tensor = self.base(x, *rest)
        changed = self._current()
        if changed is None or changed.slots.isdisjoint(self.changes):
            return out
        axis = 1 if x.ndim == 3 or x.shape[1] == len(changed.rows) else 2
        for span, slot in changed.spans:
            if slot in self.changes:
                own = functional_call(self.base, self.changes[slot], (x.narrow(axis, *_reach(span)), *rest))
                out.narrow(axis, *_reach(span)).copy_(own)
        return out

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight, for model code that looks at its type or device."""
        found = self.base.weight
        assert isinstance(found, torch.Tensor)
        return found


def has_own(module: nn.Module, changed: ChangedTokens | None) -> bool:
    """Whether a token of this step has parameters of its own at this module."""
    return (
        changed is not None
        and isinstance(module, ChangedVectors | ChangedEmbedding)
        and not changed.slots.isdisjoint(module.changes)
    )


def _reach(span: slice) -> tuple[int, int]:
    """Start and length."""
    return span.start, span.stop - span.start


def _sum_of_ranks(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [t, r] b [r, H] -> [1, t, H], added up rank by rank: a matrix product may choose another order for other t."""
    total = a.new_zeros(len(a), b.shape[1])
    for rank in range(len(b)):
        total += a[:, rank : rank + 1] * b[rank]
    return total[None]
