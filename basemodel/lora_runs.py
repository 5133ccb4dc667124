"""The plan of a step as the CPU kernel reads it: what each token uses, and by whom each adapter is used.

It does: lay out the uses of all tokens, seen from both sides. It does not: compute anything (`kernels`).

Letters: T tokens, U uses of an adapter by a token, G adapters in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from basemodel.lora_segment import Integers, Segment


@dataclass(frozen=True)
class LoraRuns:
    """A plan as the CPU kernel reads it (kernels/adapters.h: Adapters, Group).

    Seen from an adapter: `groups` [G, 5] int64: first rank row, rank, first member, members, and where their x A begins
    in a scratch of `hidden_size` floats; `members` [U] int64 are token numbers. Seen from a token: `first_use` [T + 1]
    int64, token t has the uses first_use[t] to first_use[t + 1]; `uses` [U] int64 are places among the members;
    `weights` [U] float32. So each adapter's rows are read once for all tokens that use it, wherever they stand, and a
    token's uses are added in its own order, whatever else is in the batch.
    """

    first_use: torch.Tensor
    uses: torch.Tensor
    weights: torch.Tensor
    groups: torch.Tensor
    members: torch.Tensor
    hidden_size: int

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """All of it but the size, in the order in which the kernel takes it; the same list for every layer."""
        return [self.first_use, self.uses, self.weights, self.groups, self.members]


def runs_of(segments: Sequence[Segment]) -> LoraRuns | None:
    """The runs of a step; None where no token uses an adapter. Segments follow the order of the tokens."""
    counts: list[int] = []  # uses of each token
    starts: list[int] = []  # of each use, in the order of tokens
    ranks: list[int] = []
    weights: list[float] = []
    for segment in segments:
        adapters, choice = segment.adapters, segment.choice
        if choice is None:
            counts += [len(adapters)] * segment.tokens
            starts += [use.start for use in adapters] * segment.tokens
            ranks += [use.rank for use in adapters] * segment.tokens
            weights += [use.weight for use in adapters] * segment.tokens
        else:
            chosen = [adapters[place] for place in choice.chosen.ravel().tolist()]
            counts += [choice.chosen.shape[1]] * segment.tokens
            starts += [use.start for use in chosen]
            ranks += [use.rank for use in chosen]
            factors = choice.weights.ravel().tolist()
            weights += [use.weight * factor for use, factor in zip(chosen, factors, strict=True)]
    return _grouped(np.array(counts), np.array(starts), np.array(ranks), weights) if starts else None


def _grouped(counts: Integers, starts: Integers, ranks: Integers, weights: list[float]) -> LoraRuns:
    """The runs of these uses, which are in the order of tokens: sorted by adapter, each adapter is one group."""
    order = starts.argsort(kind="stable")
    ordered, ordered_ranks = starts[order], ranks[order]
    first = np.concatenate(([0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1))
    ends = ordered_ranks.cumsum()
    groups = np.empty((len(first), 5), dtype=np.int64)
    groups[:, 0], groups[:, 1], groups[:, 2] = ordered[first], ordered_ranks[first], first
    groups[:-1, 3], groups[-1, 3] = first[1:], len(order)
    groups[:, 3] -= first
    groups[:, 4] = (ends - ordered_ranks)[first]
    uses = np.empty_like(order)
    uses[order] = np.arange(len(order))
    first_use = np.zeros(len(counts) + 1, dtype=np.int64)
    counts.cumsum(out=first_use[1:])
    return LoraRuns(
        first_use=torch.from_numpy(first_use),
        uses=torch.from_numpy(uses),
        weights=torch.tensor(weights, dtype=torch.float32),
        groups=torch.from_numpy(groups),
        members=torch.from_numpy(np.arange(len(counts)).repeat(counts)[order]),
        hidden_size=int(ends[-1]),
    )
