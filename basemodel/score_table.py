"""A mixture's scores of every token, and what its router chooses by them: experts and weights, for each token.

It does: score the vocabulary once, and route tokens, of one request or of many at once.
It does not: read a gate's files or say what a score is (`mixture_gate`), or keep a request's state (`serving`).

A choice depends on the request's own tokens up to there and nothing else: sums run in the order of the tokens, in
float64, and rows are computed by themselves. So neither neighbours nor chunks change a bit.

Letters: V vocabulary, H hidden size, E experts, T tokens, N requests, k experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from basemodel.errors import MixtureFormatError
from basemodel.mixture_gate import Mixture, token_scores

TABLE_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RouterState:
    """What a request's earlier tokens leave to the next one: sums of their scores, and of their own weights (tokens).

    With a decay, both shrink by it at every token. A context of "token" needs neither and keeps both empty.
    """

    sums: tuple[float, ...] = ()
    mass: float = 0.0


class ScoreTable:
    """The scores of every token under one mixture's gate. It does not change after it is made.

    embedding [V, H] is the base's input embedding, in any type. Raises MixtureFormatError where the gate does not fit.
    """

    def __init__(self, mixture: Mixture, embedding: torch.Tensor) -> None:
        width, wanted = embedding.shape[1], mixture.weight.shape[1]
        if width != wanted:
            raise MixtureFormatError(f"its gate is for a hidden size of {wanted}; this base has {width}")
        self.experts = len(mixture.experts)
        self.top_k = mixture.top_k
        self.context = mixture.context
        self.decay = mixture.decay
        with torch.no_grad():
            parts = [token_scores(rows, mixture.weight, mixture.bias) for rows in embedding.split(TABLE_ROWS_AT_ONCE)]
        self._scores: NDArray[np.float32] = torch.cat(parts).numpy()
        if not np.isfinite(self._scores).all():
            raise MixtureFormatError("its gate is so large that scores are not finite")

    @property
    def table_bytes(self) -> int:
        """Host memory that the table takes."""
        return self._scores.nbytes

    def route(
        self, token_ids: Sequence[int] | NDArray[np.int64], state: RouterState
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], RouterState]:
        """Experts [T, k] and weights [T, k] of the next tokens of a request, and the state after them.

        A request's tokens may come in any chunks: the result is the same, bit for bit.
        """
        scores, state = self.scores(token_ids, state)
        experts, weights = choose_experts(scores, self.top_k)
        return experts, weights, state

    def route_each(
        self, asked: Sequence[tuple[Sequence[int], RouterState]]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32], RouterState]]:
        """`route` for each of several requests, the same bits, at about the price of one: those with one token, as in
        decoding, are scored together, and experts are chosen for all tokens at once.
        """
        if all(len(token_ids) == 1 for token_ids, _ in asked):
            scores, states = self._scores_of_one(
                [token_ids[0] for token_ids, _ in asked], [state for _, state in asked]
            )
        else:
            each = [self.scores(token_ids, state) for token_ids, state in asked]
            scores, states = np.concatenate([own for own, _ in each]), [state for _, state in each]
        experts, weights = choose_experts(scores, self.top_k)
        ends = accumulate(len(token_ids) for token_ids, _ in asked)
        spans = [slice(end - len(token_ids), end) for (token_ids, _), end in zip(asked, ends, strict=True)]
        return [(experts[span], weights[span], state) for span, state in zip(spans, states, strict=True)]

    def scores(
        self, token_ids: Sequence[int] | NDArray[np.int64], state: RouterState
    ) -> tuple[NDArray[np.float64], RouterState]:
        """What `route` chooses by, [T, E], and the state after these tokens.

        For who has many requests: `choose_experts` works row by row, so it can take the scores of all of them at once.
        """
        own = self._scores[np.asarray(token_ids, dtype=np.int64)].astype(np.float64)
        if self.context == "token" or not len(own):
            return own, state
        sums = np.array(state.sums or (0.0,) * self.experts)
        return self._running_mean(own, sums, state.mass)

    def _scores_of_one(
        self, token_ids: list[int], states: list[RouterState]
    ) -> tuple[NDArray[np.float64], list[RouterState]]:
        """`scores` of one token of each of several requests [N, E], in the same operations on the same values."""
        own = self._scores[token_ids].astype(np.float64)
        if self.context == "token":
            return own, states
        sums = np.array([state.sums or (0.0,) * self.experts for state in states])
        masses = np.array([state.mass for state in states])
        if self.decay is not None:
            sums, masses = sums * self.decay, masses * self.decay
        sums, masses = sums + own, masses + 1.0
        pairs = zip(sums.tolist(), masses.tolist(), strict=True)
        return sums / masses[:, None], [RouterState(tuple(row), mass) for row, mass in pairs]

    def _running_mean(
        self, own: NDArray[np.float64], sums: NDArray[np.float64], mass: float
    ) -> tuple[NDArray[np.float64], RouterState]:
        """Sums in the order of the tokens, each from the one before: where a chunk ends leaves no trace."""
        if self.decay is None:
            running = np.cumsum(np.concatenate([sums[None], own]), axis=0)[1:]
            masses = mass + np.arange(1.0, len(own) + 1)
        else:
            columns = [_decayed(start, column, self.decay) for start, column in zip(sums, own.T, strict=True)]
            running = np.array(columns).T
            masses = np.array(_decayed(mass, np.ones(len(own)), self.decay))
        return running / masses[:, None], RouterState(tuple(running[-1].tolist()), float(masses[-1]))


def choose_experts(scores: NDArray[np.float64], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top_k` best experts of each row of scores [T, E] and their weights, best first; of equals the lower index.

    The weights are a softmax over all experts, kept for the best and scaled to sum to 1. Each row is computed for
    itself, in an order that does not depend on the others.
    """
    experts = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    kept = scores[np.arange(len(scores))[:, None], experts]
    shares = np.exp(kept - kept[:, :1])
    total = np.zeros(len(shares))
    for column in range(top_k):
        total += shares[:, column]
    return experts, (shares / total[:, None]).astype(np.float32)


def _decayed(start: float, column: NDArray[np.float64], decay: float) -> list[float]:
    """The running sums of `column` after `start`, each the one before times `decay` plus the next value."""
    sums = list(accumulate(column.tolist(), lambda before, value: before * decay + value, initial=float(start)))
    return sums[1:]
