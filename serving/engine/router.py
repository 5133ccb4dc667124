"""Which experts of its mixture a request's tokens use.

It does: route the tokens of a step's requests as they are computed, all of a mixture's at once, and tally the choices
of all requests by mixture.
It does not: read a gate or define what it chooses (`basemodel.mixture_gate`), or hold experts (`adapter_pool`).

A choice follows from the request's own tokens up to there. So what was found in the prefix cache, preempted and
computed again, or drafted and thrown away leaves no trace: the router goes back to the tokens, and chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from basemodel.lora_segment import Choice
from basemodel.mixture_gate import MOST_EXPERTS
from basemodel.score_table import RouterState, ScoreTable
from serving.messages import MixtureState

MIXTURES_TALLIED = 16


class Router:
    """One request's walk through its mixture's score table. Only the engine loop calls it. `tally` counts its choices.

    `_state` is what the first `_passed` tokens leave; those are in the KV cache and never change. `_ahead` are the
    tokens that were routed after them, which a draft may replace, and `_ahead_state` what they would leave.
    """

    def __init__(self, table: ScoreTable, tally: list[int]) -> None:
        self.table = table
        self.tally = tally
        self._passed = 0
        self._state = RouterState()
        self._ahead: list[int] = []
        self._ahead_state = RouterState()

    def untallied(self) -> Router:
        """A router of the same mixture for other tokens, whose choices nobody counts."""
        return Router(self.table, [0] * len(self.tally))

    def choose(self, tokens: Sequence[int], begin: int, end: int) -> Choice:
        """The choices for tokens [begin, end). The tokens before them are settled."""
        return route([Walk(self, tokens, (), begin, end)])[0]

    def begin(self, walk: Walk) -> tuple[list[int], RouterState]:
        """The tokens that a step is to route, and the state before them."""
        self._go_to(walk.tokens, walk.begin)
        self._ahead = walk.ahead
        return self._ahead, self._state

    def end(self, state: RouterState) -> None:
        """They are routed, and leave this state."""
        self._ahead_state = state

    def _go_to(self, tokens: Sequence[int], position: int) -> None:
        if position == self._passed + len(self._ahead) and self._ahead == list(tokens[self._passed : position]):
            self._passed, self._state = position, self._ahead_state
        elif position < self._passed:
            self._passed, self._state = 0, RouterState()
        if position > self._passed:
            _, self._state = self.table.scores(tokens[self._passed : position], self._state)
            self._passed = position
        self._ahead = []


@dataclass(frozen=True)
class Walk:
    """What one request's router is asked in a step: its tokens [begin, end), of which the last may be a draft."""

    router: Router
    tokens: Sequence[int]
    draft: Sequence[int]
    begin: int
    end: int

    @property
    def ahead(self) -> list[int]:
        """What is to be routed."""
        return [*self.tokens[self.begin : self.end - len(self.draft)], *self.draft]


def route(walks: Sequence[Walk]) -> list[Choice]:
    """The choices of each walk, in their order. Those of one mixture are made in one go, and are the same bits as one
    by one.
    """
    by_mixture: dict[int, list[int]] = {}
    for place, walk in enumerate(walks):
        by_mixture.setdefault(id(walk.router.table), []).append(place)
    found: dict[int, Choice] = {}
    for places in by_mixture.values():
        routers = [walks[place].router for place in places]
        routed = routers[0].table.route_each([walks[place].router.begin(walks[place]) for place in places])
        for place, router, (chosen, weights, state) in zip(places, routers, routed, strict=True):
            router.end(state)
            found[place] = Choice(chosen, weights)
            for expert in chosen.ravel().tolist():
                router.tally[expert] += 1
    return [found[place] for place in range(len(walks))]


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
