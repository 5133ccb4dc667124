"""Which adapters the tokens of a step use: runs of tokens with none, one, a weighted list, or a choice from a list.

It does: say it as values that the plan of a step (`lora_ops`) is made of. It does not: decide it, or compute anything.

Letters: T tokens, k adapters that a router chose for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class RankRows:
    """The rank rows [start, start + rank) of one adapter, and the weight with which a token uses them.

    `slot` is there where the adapter changes more than linear layers (`basemodel.adapter_changes`); such an adapter is
    used alone, with weight 1.
    """

    start: int
    rank: int
    weight: float = 1.0
    slot: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which of a list of adapters each token uses: `chosen` [T, k] are places in the list, each at most once a token;
    `weights` [T, k] multiply the list's own. The order within a token is that in which they are added.
    """

    chosen: Integers
    weights: NDArray[np.float32]

    def part(self, span: slice) -> Choice:
        """The same for some of the tokens."""
        return Choice(self.chosen[span], self.weights[span])


@dataclass(frozen=True)
class Segment:
    """The next `tokens` tokens of a batch and the adapters that they use: none, one, or a weighted list.

    Without a choice every token uses them all; with one (T is `tokens`), those that were chosen for it.
    """

    tokens: int
    adapters: tuple[RankRows, ...]
    choice: Choice | None = None

    def uses_of(self, token: int) -> list[RankRows]:
        """What one of its tokens uses, weights multiplied."""
        if self.choice is None:
            return list(self.adapters)
        pairs = zip(self.choice.chosen[token].tolist(), self.choice.weights[token].tolist(), strict=True)
        listed = [(self.adapters[place], weight) for place, weight in pairs]
        return [RankRows(use.start, use.rank, use.weight * weight) for use, weight in listed]


def shares_of(segment: Segment) -> torch.Tensor:
    """The weight of each adapter of a segment's list for each of its tokens, or for all of them: [T or 1, adapters]."""
    listed = torch.tensor([[use.weight for use in segment.adapters]], dtype=torch.float32)
    if segment.choice is None:
        return listed
    shares = np.zeros((segment.tokens, len(segment.adapters)), dtype=np.float32)
    np.put_along_axis(shares, segment.choice.chosen, segment.choice.weights, axis=1)
    return torch.from_numpy(shares) * listed
