"""Versions: listed page by page, shown, and found by a reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, cast

import msgspec
from litestar import Controller, MediaType, Request, Response, get
from litestar.params import QueryParameter

from registry.http.parameters import CursorQuery, LimitQuery, NamePart, TenantPart, VersionPart
from registry.http.service import caller_of, registry_of, service_of
from registry.names import REFERENCE_CHARACTERS
from registry.page import PAGE_DEFAULT, Page
from registry.version import Version

ENCODED_LIMIT = 1024

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

    @get()
    async def resolve(self, request: Request[Any, Any, Any], ref: RefQuery) -> Response[Version]:
        """The version that a reference means now; a bare name is the newest."""
        service, caller = service_of(request), caller_of(request)
        version = service.registry.remembered(ref, principal=caller)
        if version is None:
            version = await service.lookups.run(service.registry.resolve, ref, principal=caller)
        return _answer(version)


def _answer(version: Version) -> Response[Version]:
    """The ETag is the digest: what is addressed by it never changes."""
    shown = _Shown((version.adapter, version.number, version.digest, version.visibility.value), version)
    headers = {"etag": f'"{version.digest}"', "cache-control": "private, no-cache"}
    return Response(cast("Version", _encoded(shown)), media_type=MediaType.JSON, headers=headers)


@dataclass(frozen=True)
class _Shown:
    """A version, known by its name, number and digest, and by its adapter's visibility: the rest never changes."""

    identity: tuple[str, int, str, str]
    version: Version = field(compare=False)


@lru_cache(ENCODED_LIMIT)
def _encoded(shown: _Shown) -> bytes:
    """The version as JSON: what is resolved often is encoded once."""
    return msgspec.json.encode(shown.version)
