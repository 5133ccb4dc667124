"""Which experts of its mixture a request's tokens use.

It does: route a request's tokens as they are computed, and tally the choices of all requests by mixture.
It does not: read a gate or define what it chooses (`basemodel.mixture_gate`), or hold experts (`adapter_pool`).

A choice follows from the request's own tokens up to there. So what was found in the prefix cache, preempted and
computed again, or drafted and thrown away leaves no trace: the router goes back to the tokens, and chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from basemodel.lora_ops import Choice
from basemodel.mixture_gate import MOST_EXPERTS, RouterState, ScoreTable
from serving.messages import MixtureState

MIXTURES_TALLIED = 16


class Router:
    """One request's walk through its mixture's score table. Only the engine loop calls it.

    `_state` is what the first `_passed` tokens leave; those are in the KV cache and never change. `_ahead` are the
    tokens that were routed after them, which a draft may replace, and `_ahead_state` what they would leave.
    """

    def __init__(self, table: ScoreTable, tally: list[int]) -> None:
        self._table = table
        self._tally = tally
        self._passed = 0
        self._state = RouterState()
        self._ahead: list[int] = []
        self._ahead_state = RouterState()

    def untallied(self) -> Router:
        """A router of the same mixture for other tokens, whose choices nobody counts."""
        return Router(self._table, [0] * len(self._tally))

    def choose(self, tokens: Sequence[int], begin: int, end: int) -> Choice:
        """The choices for tokens [begin, end). The tokens before them are settled."""
        self._go_to(tokens, begin)
        self._ahead = list(tokens[begin:end])
        chosen, weights, self._ahead_state = self._table.route(self._ahead, self._state)
        for expert, count in enumerate(np.bincount(chosen.ravel(), minlength=len(self._tally)).tolist()):
            self._tally[expert] += count
        return Choice(chosen, weights)

    def _go_to(self, tokens: Sequence[int], position: int) -> None:
        if position == self._passed + len(self._ahead) and self._ahead == list(tokens[self._passed : position]):
            self._passed, self._state = position, self._ahead_state
        elif position < self._passed:
            self._passed, self._state = 0, RouterState()
        if position > self._passed:
            _, self._state = self._table.scores(tokens[self._passed : position], self._state)
            self._passed = position
        self._ahead = []


class Tallies:
    """How often each expert was chosen for a computed token: of the first mixtures by name, of all others together.

    Only the engine loop changes it.
    """

    def __init__(self) -> None:
        self._chosen: dict[str | None, list[int]] = {}

    def of(self, digest: str, experts: int) -> list[int]:
        """The counts of a mixture, for its routers to add to."""
        if digest in self._chosen or len(self._chosen.keys() - {None}) < MIXTURES_TALLIED:
            return self._chosen.setdefault(digest, [0] * experts)
        return self._chosen.setdefault(None, [0] * MOST_EXPERTS)

    def states(self) -> list[MixtureState]:
        """A snapshot of all counts."""
        return [MixtureState(digest=digest, chosen=tuple(chosen)) for digest, chosen in self._chosen.items()]
