"""Mirrors: where adapters are pulled in from. Adding one is the operator's."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post, put
from litestar.params import JSONBody

from registry.http.parameters import NamePart, TenantPart
from registry.http.service import caller_of, registry_of, service_of
from registry.mirror import DEFAULT_REVISION, Mirror, MirrorSync
from registry.mirror_schedule import LONGEST_SECONDS, SHORTEST_SECONDS
from registry.outbound import URL_CHARACTERS
from registry.upstream import REVISION_CHARACTERS

Token = Annotated[str, msgspec.Meta(min_length=1, max_length=512, description="For the upstream; it is not kept.")]


class NewMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to pull from: `source` is `https://host/org/repo`."""

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=URL_CHARACTERS)]
    revision: Annotated[str, msgspec.Meta(min_length=1, max_length=REVISION_CHARACTERS)] = DEFAULT_REVISION
    token: Token | None = None
    base_fingerprint: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class Sync(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the upstream needs to be told."""

    token: Token | None = None


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the upstream is looked at; null is never."""

    every_seconds: Annotated[int, msgspec.Meta(ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)] | None


class MirrorController(Controller):
    """Adapters that are pulled in from another Hub, each version pinned to its upstream commit."""

    tags = ("mirrors",)

    @get("/mirrors", sync_to_thread=True)
    def list_mirrors(self, request: Request[Any, Any, Any]) -> list[Mirror]:
        """Every mirror that the caller may read, by name."""
        return registry_of(request).list_mirrors(caller_of(request))

    @put("/adapters/{tenant:str}/{name:str}/mirror")
    async def add_mirror(
        self, request: Request[Any, Any, Any], data: JSONBody[NewMirror], tenant: TenantPart, name: NamePart
    ) -> MirrorSync:
        """Pull the upstream's commit in, judged like any publish, and remember where it came from. The operator's."""
        service = service_of(request)
        return await service.transfers.run(
            service.registry.add_mirror,
            f"{tenant}/{name}",
            data.source,
            revision=data.revision,
            token=data.token,
            base_fingerprint=data.base_fingerprint,
            principal=caller_of(request),
        )

    @post("/adapters/{tenant:str}/{name:str}/mirror/sync", status_code=200)
    async def sync_mirror(
        self, request: Request[Any, Any, Any], data: JSONBody[Sync], tenant: TenantPart, name: NamePart
    ) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one."""
        service = service_of(request)
        return await service.transfers.run(
            service.registry.sync_mirror, f"{tenant}/{name}", token=data.token, principal=caller_of(request)
        )

    @put("/adapters/{tenant:str}/{name:str}/mirror/schedule", sync_to_thread=True)
    def follow_mirror(
        self, request: Request[Any, Any, Any], data: JSONBody[Schedule], tenant: TenantPart, name: NamePart
    ) -> Mirror:
        """Look at the upstream every so many seconds; null is never by itself. The operator's."""
        every = None if data.every_seconds is None else timedelta(seconds=data.every_seconds)
        return registry_of(request).follow_mirror(f"{tenant}/{name}", every, principal=caller_of(request))

    @delete("/adapters/{tenant:str}/{name:str}/mirror", status_code=200, sync_to_thread=True)
    def remove_mirror(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> Mirror:
        """Forget where the adapter came from; its versions stay."""
        return registry_of(request).remove_mirror(f"{tenant}/{name}", caller_of(request))
