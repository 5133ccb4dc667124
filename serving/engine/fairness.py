"""In which order requests get a step's room for prompts.

It does: order by tokens already served, first to each tenant and then to each adapter within a tenant, so that no flood
holds up another tenant's request, nor a busy adapter a quiet one. Within a tenant its own priorities come first: they
order what belongs to the tenant and nothing else.
It does not: admit (`scheduler`).
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

from serving.engine.accounts import Accounts
from serving.engine.request import Request

# A generated token costs a whole step's share, a prompt token is one of many in its step.
PROMPT_TOKEN_COST = 1
GENERATED_TOKEN_COST = 2
# Reading an adapter from disk, and copying it to the device, take about as long as so many tokens of a prompt.
LOAD_COST = 32


class FairOrder:
    """Served tokens by tenant, and by adapters within it. Only the scheduler and the engine loop change it."""

    def __init__(self) -> None:
        self._tenants = Accounts()
        self._adapters: dict[str, Accounts] = {}

    def enter(self, request: Request) -> None:
        """A request has arrived."""
        self._tenants.enter(request.tenant)
        self._adapters.setdefault(request.tenant, Accounts()).enter(request.digests)

    def leave(self, request: Request) -> None:
        """A request is done."""
        self._tenants.leave(request.tenant)
        adapters = self._adapters[request.tenant]
        adapters.leave(request.digests)
        if adapters.is_empty:
            del self._adapters[request.tenant]

    def charge(self, request: Request, *, prompt_tokens: int = 0, generated_tokens: int = 0, loads: int = 0) -> None:
        """A request was served these tokens, and so many reads and copies of adapters."""
        cost = PROMPT_TOKEN_COST * prompt_tokens + GENERATED_TOKEN_COST * generated_tokens + LOAD_COST * loads
        self._tenants.charge(request.tenant, cost)
        self._adapters[request.tenant].charge(request.digests, cost)

    def tenant_served(self, tenant: str) -> int:
        """What a tenant with requests inside was served."""
        return self._tenants.served(tenant)

    def adapters_served(self, request: Request) -> int:
        """What the adapters of a request inside were served, within its tenant."""
        return self._adapters[request.tenant].served(request.digests)

    def line(self, requests: Iterable[Request]) -> FairLine:
        """These requests in a line, for one step."""
        return FairLine(self, requests)

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """`requests` are all that are inside."""
        inside: dict[str, Counter[Hashable]] = defaultdict(Counter)
        for request in requests:
            inside[request.tenant][request.digests] += 1
        self._tenants.check_integrity(Counter({tenant: each.total() for tenant, each in inside.items()}))
        assert set(inside) == set(self._adapters)
        for tenant, each in inside.items():
            self._adapters[tenant].check_integrity(each)


class FairLine:
    """Who is next within one step. What the step gives out counts at once, so that one step is fair in itself.

    Keys only grow while the line is walked, so a heap whose top is brought up to date when it is looked at is enough.
    A tenant's own requests are put in order when it has its first turn.
    """

    def __init__(self, fair: FairOrder, requests: Iterable[Request]) -> None:
        self._fair = fair
        self._taken: Counter[str] = Counter()
        self._adapters_taken: Counter[tuple[str, Hashable]] = Counter()
        self._requests: dict[str, list[Request]] = defaultdict(list)
        for request in requests:
            self._requests[request.tenant].append(request)
        self._entries: dict[str, list[tuple[int, int, int, Request]]] = {}
        self._tenants = [
            (fair.tenant_served(tenant), min(request.arrival for request in own), tenant)
            for tenant, own in self._requests.items()
        ]
        heapq.heapify(self._tenants)

    def pop(self) -> Request | None:
        """Take the next request out of the line: of the least served tenant, its most urgent; None at the end."""
        while self._tenants:
            served, first_arrival, tenant = self._tenants[0]
            now = self._fair.tenant_served(tenant) + self._taken[tenant]
            if now > served:
                heapq.heapreplace(self._tenants, (now, first_arrival, tenant))
                continue
            entries = self._entries_of(tenant)
            request = self._pop_from(entries)
            if not entries:
                heapq.heappop(self._tenants)
            return request
        return None

    def took(self, request: Request, prompt_tokens: int) -> None:
        """The step computes these tokens of a request's prompt."""
        self._taken[request.tenant] += PROMPT_TOKEN_COST * prompt_tokens
        self._adapters_taken[request.tenant, request.digests] += PROMPT_TOKEN_COST * prompt_tokens

    def _entries_of(self, tenant: str) -> list[tuple[int, int, int, Request]]:
        entries = self._entries.get(tenant)
        if entries is None:
            entries = self._entries[tenant] = [self._entry(request) for request in self._requests[tenant]]
            heapq.heapify(entries)
        return entries

    def _pop_from(self, entries: list[tuple[int, int, int, Request]]) -> Request:
        while True:
            now = self._entry(entries[0][3])
            if now[1] == entries[0][1]:
                return heapq.heappop(entries)[3]
            heapq.heapreplace(entries, now)

    def _entry(self, request: Request) -> tuple[int, int, int, Request]:
        served = self._fair.adapters_served(request) + self._adapters_taken[request.tenant, request.digests]
        return request.priority, served, request.arrival, request
