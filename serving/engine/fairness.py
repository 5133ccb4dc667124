"""In which order waiting requests are looked at.

It does: order by tokens already served to each tenant, so that one tenant's flood does not hold up another's request.
It does not: admit (`scheduler`). Source: virtual token counter, "Fairness in Serving Large Language Models" (OSDI'24):
a tenant's counter grows by what it is served; a tenant that comes back starts at the smallest counter of those active,
so that idleness saves nothing up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from serving.engine.request import Request

# A generated token costs a whole step's share, a prompt token is one of many in its step.
PROMPT_TOKEN_COST = 1
GENERATED_TOKEN_COST = 2


class FairOrder:
    """Served tokens by tenant. Only tenants with requests in the engine are kept, so it stays small."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._active: Counter[str] = Counter()

    def enter(self, tenant: str) -> None:
        """A request of `tenant` has arrived."""
        if tenant not in self._served:
            self._served[tenant] = min(self._served.values(), default=0.0)
        self._active[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A request of `tenant` is done."""
        self._active[tenant] -= 1
        if self._active[tenant] == 0:
            del self._active[tenant], self._served[tenant]

    def charge(self, tenant: str, *, prompt_tokens: int = 0, generated_tokens: int = 0) -> None:
        """`tenant` was served these tokens."""
        self._served[tenant] += PROMPT_TOKEN_COST * prompt_tokens + GENERATED_TOKEN_COST * generated_tokens

    def order(self, requests: Iterable[Request]) -> list[Request]:
        """Least served tenant first; within a tenant, and between equals, first come first served."""
        return sorted(requests, key=lambda request: (self._served[request.tenant], request.arrival))
