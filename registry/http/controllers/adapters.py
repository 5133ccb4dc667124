"""Adapters: listed page by page, searched, and shown."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, put
from litestar.params import JSONBody, QueryParameter

from registry.http.parameters import CursorQuery, LimitQuery, NamePart, TenantPart
from registry.http.service import caller_of, registry_of
from registry.names import REFERENCE_CHARACTERS, TENANT_CHARACTERS
from registry.page import PAGE_DEFAULT, Page
from registry.version import AdapterSummary, Visibility

TenantQuery = Annotated[
    str | None, QueryParameter(name="tenant", max_length=TENANT_CHARACTERS, description="Only this tenant's.")
]
SearchQuery = Annotated[
    str | None,
    QueryParameter(name="search", max_length=REFERENCE_CHARACTERS, description="Text that is in the full name."),
]


class NewVisibility(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may read an adapter: its tenant, or everybody with a token."""

    visibility: Visibility


class AdapterController(Controller):
    """Adapters that the caller may read."""

    path = "/adapters"
    tags = ("adapters",)

    @get(sync_to_thread=True)
    def list_adapters(
        self,
        request: Request[Any, Any, Any],
        limit: LimitQuery = PAGE_DEFAULT,
        cursor: CursorQuery = None,
        tenant: TenantQuery = None,
        search: SearchQuery = None,
    ) -> Page[AdapterSummary]:
        """Adapters with a version, by name."""
        return registry_of(request).page_adapters(
            caller_of(request), limit=limit, cursor=cursor, tenant=tenant, search=search
        )

    @get("/{tenant:str}/{name:str}", sync_to_thread=True)
    def show_adapter(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> AdapterSummary:
        """One adapter: its newest version, and where its aliases point."""
        return registry_of(request).adapter(f"{tenant}/{name}", caller_of(request))

    @put("/{tenant:str}/{name:str}/visibility", sync_to_thread=True)
    def set_visibility(
        self, request: Request[Any, Any, Any], data: JSONBody[NewVisibility], tenant: TenantPart, name: NamePart
    ) -> dict[str, Visibility]:
        """Make the adapter private or public. For admins."""
        found = registry_of(request).set_visibility(f"{tenant}/{name}", data.visibility.value, caller_of(request))
        return {"visibility": found}
