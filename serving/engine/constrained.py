"""The requests whose answers follow a grammar: those that wait until it is compiled, and those that run.

It does: know which of them can be queued, which have ended by their grammar, and which must sit out a step's choice
because what they may say next is not worked out yet. It does not: run or end a request (`engine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serving.engine.constraint import Allowed, wait_until_known
from serving.engine.errors import RequestRefusedError
from serving.engine.grammar_pool import Compilation, GrammarPool
from serving.engine.request import Request, Row

# How long a step waits after its forward for all that is not worked out yet: usually it was done meanwhile.
LATE_SECONDS = 0.002


class ConstrainedRequests:
    """Only the engine loop calls it."""

    def __init__(self, grammars: GrammarPool) -> None:
        self._grammars = grammars
        self._compiling: dict[str, tuple[Request, Compilation]] = {}
        self._following: dict[str, Request] = {}

    @property
    def compiling(self) -> list[Request]:
        """Those that wait for their grammar; the scheduler does not know them yet."""
        return [request for request, _ in self._compiling.values()]

    def add(self, request: Request, grammar: str) -> None:
        """Take a request and begin to compile its grammar."""
        self._compiling[request.request_id] = (request, self._grammars.want(request.tenant, grammar))

    def remove(self, request: Request) -> bool:
        """Forget a request; True where it was still waiting for its grammar."""
        known = self._following.pop(request.request_id, None) is not None
        was_compiling = self._compiling.pop(request.request_id, None) is not None
        if (known or was_compiling) and not self._has_requests_of(request.tenant):
            self._grammars.rest(request.tenant)
        return was_compiling

    def compiled(self) -> Iterator[tuple[Request, RequestRefusedError | None]]:
        """Requests that can be queued now, and those whose grammar was refused (they still wait: `remove` them)."""
        for request, compilation in list(self._compiling.values()):
            try:
                request.constraint = self._grammars.constraint(compilation)
            except RequestRefusedError as error:
                yield request, error
                continue
            if request.constraint is not None:
                del self._compiling[request.request_id]
                self._following[request.request_id] = request
                yield request, None

    def ended(self) -> Iterator[tuple[Request, Allowed]]:
        """Requests that have nothing more to say: their text is complete, or their grammar cannot go on."""
        for request in list(self._following.values()):
            allowed = request.constraint.allowed if request.constraint is not None else None
            if allowed is not None and allowed.forbidden is None:
                yield request, allowed

    def late(self, sampled: Sequence[Row]) -> set[str]:
        """Ids of the requests among these for which no token can be chosen in this step."""
        if not self._following:
            return set()
        constraints = {row.request.request_id: row.request.constraint for row in sampled}
        unknown = [each for each in constraints.values() if each is not None and each.allowed is None]
        if unknown:
            wait_until_known(unknown, LATE_SECONDS)
        return {
            request_id
            for request_id, constraint in constraints.items()
            if constraint is not None and ((allowed := constraint.allowed) is None or allowed.forbidden is None)
        }

    def _has_requests_of(self, tenant: str) -> bool:
        return any(request.tenant == tenant for request in (*self._following.values(), *self.compiling))

    def close(self) -> None:
        """End the threads."""
        self._grammars.close()
