"""Versions: listed page by page, shown, and found by a reference."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, Request, Response, get
from litestar.params import QueryParameter

from registry.http.parameters import CursorQuery, LimitQuery, NamePart, TenantPart, VersionPart
from registry.http.service import caller_of, registry_of
from registry.names import REFERENCE_CHARACTERS
from registry.page import PAGE_DEFAULT, Page
from registry.version import Version

RefQuery = Annotated[
    str,
    QueryParameter(
        name="ref",
        max_length=REFERENCE_CHARACTERS,
        description="`acme/sql`, `acme/sql@3`, `acme/sql@prod` or a digest.",
    ),
]


class VersionController(Controller):
    """Versions of one adapter."""

    path = "/adapters/{tenant:str}/{name:str}/versions"
    tags = ("versions",)

    @get(sync_to_thread=True)
    def list_versions(
        self,
        request: Request[Any, Any, Any],
        tenant: TenantPart,
        name: NamePart,
        limit: LimitQuery = PAGE_DEFAULT,
        cursor: CursorQuery = None,
    ) -> Page[Version]:
        """An adapter's versions, newest first."""
        return registry_of(request).page_versions(f"{tenant}/{name}", caller_of(request), limit=limit, cursor=cursor)

    @get("/{version:str}", sync_to_thread=True)
    def show_version(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, version: VersionPart
    ) -> Response[Version]:
        """One version by its number, by an alias that points at it, or by its digest."""
        return _answer(registry_of(request).resolve(f"{tenant}/{name}@{version}", principal=caller_of(request)))


class ResolveController(Controller):
    """References."""

    path = "/resolve"
    tags = ("versions",)

    @get(sync_to_thread=True)
    def resolve(self, request: Request[Any, Any, Any], ref: RefQuery) -> Response[Version]:
        """The version that a reference means now; a bare name is the newest."""
        return _answer(registry_of(request).resolve(ref, principal=caller_of(request)))


def _answer(version: Version) -> Response[Version]:
    """The ETag is the digest: what is addressed by it never changes."""
    return Response(version, headers={"etag": f'"{version.digest}"', "cache-control": "private, no-cache"})
