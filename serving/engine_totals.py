"""What all engines of this server have counted together: the counters of `Stats`, carried over restarts.

An engine's counters begin at zero at each of its starts, but a Prometheus counter may never fall.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.messages import MixtureState, Stats

MIXTURES_NAMED = 16


@dataclass
class EngineTotals:
    """Sums over every engine since the server's start. Only the `EngineClient` adds to it."""

    steps: int = 0
    step_seconds: float = 0.0
    preemptions: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    adapter_load_seconds: float = 0.0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    chosen: dict[tuple[str | None, int], int] = field(default_factory=dict)
    """How often each expert of a mixture was chosen, by the mixture's digest (None: all others) and place."""

    def add(self, before: Stats | None, now: Stats) -> None:
        """Add what one engine has counted since its last snapshot (None: since its start)."""
        for name in self.__dataclass_fields__.keys() - {"chosen"}:
            growth = getattr(now, name) - (0 if before is None else getattr(before, name))
            setattr(self, name, getattr(self, name) + growth)
        counted = _by_place(() if before is None else before.mixtures)
        for (digest, place), count in _by_place(now.mixtures).items():
            named = digest if digest in self._named or len(self._named) < MIXTURES_NAMED else None
            key = (named, place)
            self.chosen[key] = self.chosen.get(key, 0) + count - counted.get((digest, place), 0)

    @property
    def _named(self) -> set[str]:
        return {digest for digest, _ in self.chosen if digest is not None}


def _by_place(states: Iterable[MixtureState]) -> dict[tuple[str | None, int], int]:
    return {(state.digest, place): count for state in states for place, count in enumerate(state.chosen)}
