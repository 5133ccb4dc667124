"""What all engines of this server have counted together: the counters of `Stats`, carried over restarts.

An engine's counters begin at zero at each of its starts, but a Prometheus counter may never fall.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.messages import Stats


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

    def add(self, before: Stats | None, now: Stats) -> None:
        """Add what one engine has counted since its last snapshot (None: since its start)."""
        for name in self.__dataclass_fields__:
            growth = getattr(now, name) - (0 if before is None else getattr(before, name))
            setattr(self, name, getattr(self, name) + growth)
