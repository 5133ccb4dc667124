"""What a browser is shown at the root and at a tenant's address: the adapters that it may read, page by page.

    /   /{tenant}   [?after=TENANT/NAME]

These are pages as `pages.py` has them: only who asks for `text/html` gets one, and nothing on them runs or is fetched.
A tenant of which the reader may read nothing looks like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry.base import BaseRecord
from registry.errors import InvalidValueError
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.page import Page, html_response
from registry.hub.request import Request
from registry.hub.response import Response
from registry.hub.routing import Access, Route
from registry.names import parse_tenant
from registry.principal import Principal
from registry.version import AdapterSummary

ADAPTERS_SHOWN = 50
AFTER = "after"
"""The one field of the query: the adapter after which the page begins."""


@dataclass(frozen=True)
class Overview:
    """A page of adapters, of one tenant or (None) of all; `next_cursor` is the last one where more follow."""

    tenant: str | None
    after: str | None
    adapters: tuple[AdapterSummary, ...]
    bases: Mapping[str, BaseRecord]
    next_cursor: str | None


async def show_root(hub: Hub, request: Request) -> Response:
    """GET /: every adapter that the reader may read."""
    return await _show(hub, request, None)


async def show_tenant(hub: Hub, request: Request) -> Response:
    """GET /{tenant}: those of one tenant."""
    return await _show(hub, request, parse_tenant(request.values["tenant"]))


async def _show(hub: Hub, request: Request, tenant: str | None) -> Response:
    after = _after(request)
    overview = await hub.run(_gather, hub, tenant, after, request.principal)
    return html_response(Page("overview.html", 200, {"page": overview, "url": request.base_url}))


def _after(request: Request) -> str | None:
    fields = request.query()
    if len(fields) > 1 or any(name != AFTER for name, _ in fields):
        raise InvalidValueError("query", f"this page takes {AFTER!r}, once, and nothing else")
    return fields[0][1] if fields else None


def _gather(hub: Hub, tenant: str | None, after: str | None, principal: Principal) -> Overview:
    found = hub.registry.page_adapters(principal, limit=ADAPTERS_SHOWN, cursor=after, tenant=tenant)
    if tenant is not None and not found.items and principal.tenant != tenant:
        raise HubError(404, "This tenant has no adapter that you may read.")
    bases = {
        fingerprint: hub.registry.base(fingerprint) for fingerprint in {one.base_fingerprint for one in found.items}
    }
    return Overview(tenant, after, found.items, bases, found.next_cursor)


ROUTES = tuple(
    Route(method, pattern, handler, Access.BROWSER)
    for method in ("GET", "HEAD")
    for pattern, handler in (("/", show_root), ("/{tenant}", show_tenant))
)
