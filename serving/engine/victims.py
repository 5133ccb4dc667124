"""Which running request gives way: to one that runs and needs KV blocks, or to one that has waited its patience out.

It does: choose. It does not: preempt (`scheduler`).

A request is settled when it has produced a number of tokens since it was admitted. Only settled requests give way to
those that wait, and they are the first to give way to those that run: each admission brings something forward, so
requests that preempt each other still all come to their end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from serving.engine.fairness import FairOrder
from serving.engine.request import Request


def is_settled(request: Request, settled_tokens: int) -> bool:
    """Whether a request decodes, and has produced `settled_tokens` since it was admitted."""
    return request.pending_tokens == 1 and len(request.tokens) - request.admitted_tokens >= settled_tokens


def gives_blocks(running: Sequence[Request], settled_tokens: int) -> Request:
    """Who gives up its blocks: of the tenants with a settled request the one that holds the most blocks, else the
    tenant that came last; and of its requests the least urgent, and of these the youngest.
    """
    settled = {request.tenant for request in running if is_settled(request, settled_tokens)}
    held: Counter[str] = Counter()
    for request in running:
        held[request.tenant] += len(request.blocks)
    last = max(running, key=lambda request: request.arrival).tenant
    tenant = max(sorted(settled), key=lambda name: held[name], default=last)
    own = (request for request in running if request.tenant == tenant)
    return max(own, key=lambda request: (request.priority, request.arrival))


def gives_place(
    running: Sequence[Request], waiting: Request, fair: FairOrder, settled_tokens: int, *, with_adapters: bool
) -> Request | None:
    """Who gives way to a waiting request of another tenant: a settled request of the most served tenant that was served
    more and runs more; None if there is none. `with_adapters`: only one that has adapters is of use.
    """
    runs = Counter(request.tenant for request in running)
    own = runs[waiting.tenant]
    served = fair.tenant_served(waiting.tenant)
    candidates = [
        request
        for request in running
        if request.tenant != waiting.tenant
        and fair.tenant_served(request.tenant) > served
        and runs[request.tenant] > (own + 1 if own else 0)  # a difference of one would go back and forth
        and is_settled(request, settled_tokens)
        and (request.adapters or not with_adapters)
    ]
    return max(
        candidates,
        key=lambda request: (fair.tenant_served(request.tenant), request.priority, request.arrival),
        default=None,
    )
