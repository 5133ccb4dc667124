"""Which adapters the requests inside the server use, by the names that their clients wrote.

Gateways route by these names (`vllm:lora_requests_info`), so they are the names of requests, not digests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from serving.messages import AdapterState


class AdaptersInUse:
    """Counts requests by digest and name. Mutable; each request enters once and leaves once."""

    def __init__(self) -> None:
        self._names: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def enter(self, digest: str, name: str) -> None:
        """A request begins to use an adapter."""
        self._names[digest][name] += 1

    def leave(self, digest: str, name: str) -> None:
        """The request has ended."""
        names = self._names[digest]
        assert names[name] > 0, "left more often than entered"
        names[name] -= 1
        if not names[name]:
            del names[name]
        if not names:
            del self._names[digest]

    def running_and_waiting(self, states: Iterable[AdapterState]) -> tuple[list[str], list[str]]:
        """The names with a row in the engine's batch, and those that only wait."""
        running_digests = {state.digest for state in states if state.running}
        running: set[str] = set()
        waiting: set[str] = set()
        for digest, names in self._names.items():
            (running if digest in running_digests else waiting).update(names)
        return sorted(running), sorted(waiting)
