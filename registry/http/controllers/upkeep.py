"""What is kept of an adapter and what goes: deletion, renaming, pins, leases and retention."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post, put
from litestar.params import JSONBody, QueryParameter

from registry.http.parameters import NamePart, TenantPart, VersionPart
from registry.http.service import caller_of, registry_of
from registry.lease import Lease, Pin
from registry.leases import HOLDER_CHARACTERS, LEASE_LIMIT, REASON_CHARACTERS
from registry.leases import VERSIONS_LIMIT as VERSIONS_PER_LEASE
from registry.names import REFERENCE_CHARACTERS
from registry.retention_rule import DAYS_LIMIT, VERSIONS_LIMIT, RetentionRule

HolderQuery = Annotated[
    str, QueryParameter(name="holder", min_length=1, max_length=HOLDER_CHARACTERS, description="Who holds leases.")
]
ForceQuery = Annotated[
    bool,
    QueryParameter(name="force", description="Even while a server has it loaded, or a rollback goes back to it."),
]


class NewName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an adapter is moved to."""

    to: Annotated[str, msgspec.Meta(min_length=1, max_length=REFERENCE_CHARACTERS, description="`TENANT/NAME`.")]


class NewPin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a version is kept."""

    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARACTERS)] = ""


class NewRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is kept: the last so many versions, and those of the last so many days."""

    keep_last: Annotated[int, msgspec.Meta(ge=1, le=VERSIONS_LIMIT)] | None = None
    keep_days: Annotated[int, msgspec.Meta(ge=1, le=DAYS_LIMIT)] | None = None


Reference = Annotated[str, msgspec.Meta(max_length=REFERENCE_CHARACTERS)]


class NewLeases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who uses which versions (`TENANT/NAME@NUMBER`), and for how long from now."""

    versions: Annotated[list[Reference], msgspec.Meta(max_length=VERSIONS_PER_LEASE)]
    holder: Annotated[str, msgspec.Meta(min_length=1, max_length=HOLDER_CHARACTERS)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LEASE_LIMIT.total_seconds())]


class UpkeepController(Controller):
    """What is kept of one adapter, and what goes."""

    path = "/adapters/{tenant:str}/{name:str}"
    tags = ("upkeep",)

    @delete(status_code=200, sync_to_thread=True)
    def delete_adapter(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> dict[str, str]:
        """Delete the adapter with all its versions and aliases. Its name rests for a year. For admins."""
        registry_of(request).delete_adapter(f"{tenant}/{name}", caller_of(request))
        return {"deleted": f"{tenant}/{name}"}

    @post("/move", status_code=200, sync_to_thread=True)
    def move_adapter(
        self, request: Request[Any, Any, Any], data: JSONBody[NewName], tenant: TenantPart, name: NamePart
    ) -> dict[str, str]:
        """Rename the adapter within its tenant. Its old name rests for a year. For admins."""
        registry_of(request).move_adapter(f"{tenant}/{name}", data.to, caller_of(request))
        return {"moved_to": data.to}

    @get("/moved-to", sync_to_thread=True)
    def moved_to(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> dict[str, str | None]:
        """Where the adapter of this name went; null where it was not renamed, or the caller may not read it."""
        return {"moved_to": registry_of(request).moved_to(f"{tenant}/{name}", caller_of(request))}

    @delete("/versions/{version:str}", status_code=200, sync_to_thread=True)
    def delete_version(
        self,
        request: Request[Any, Any, Any],
        tenant: TenantPart,
        name: NamePart,
        version: VersionPart,
        force: ForceQuery = False,
    ) -> dict[str, str]:
        """Delete a version that no alias, canary, tag or pin needs, no server, and no rollback. For admins.

        The answer to what is needed is 409, with the reason and what to do. `force` overrules servers and
        rollbacks only.
        """
        ref = f"{tenant}/{name}@{version}"
        registry_of(request).delete_version(ref, caller_of(request), force=force)
        return {"deleted": ref}

    @get("/pins", sync_to_thread=True)
    def pins(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> list[Pin]:
        """The versions that somebody wants kept, and why."""
        return registry_of(request).pins(f"{tenant}/{name}", caller_of(request))

    @put("/versions/{version:str}/pin", sync_to_thread=True)
    def pin(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[NewPin],
        tenant: TenantPart,
        name: NamePart,
        version: VersionPart,
    ) -> Pin:
        """Keep a version until it is unpinned. For promoters."""
        ref = f"{tenant}/{name}@{version}"
        return registry_of(request).pin(ref, reason=data.reason, principal=caller_of(request))

    @delete("/versions/{version:str}/pin", status_code=200, sync_to_thread=True)
    def unpin(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, version: VersionPart) -> Pin:
        """Keep a version no longer. For promoters."""
        return registry_of(request).unpin(f"{tenant}/{name}@{version}", principal=caller_of(request))

    @get("/leases", sync_to_thread=True)
    def leases(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> list[Lease]:
        """Which servers use which versions now."""
        return registry_of(request).leases(f"{tenant}/{name}", caller_of(request))

    @get("/retention", sync_to_thread=True)
    def retention(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart
    ) -> dict[str, RetentionRule | None]:
        """How long versions are kept; a rule of null is for ever."""
        return {"rule": registry_of(request).retention(f"{tenant}/{name}", caller_of(request))}

    @put("/retention", sync_to_thread=True)
    def set_retention(
        self, request: Request[Any, Any, Any], data: JSONBody[NewRule], tenant: TenantPart, name: NamePart
    ) -> dict[str, RetentionRule | None]:
        """Set how long versions are kept. For admins."""
        rule = RetentionRule(keep_last=data.keep_last, keep_days=data.keep_days)
        return {"rule": registry_of(request).set_retention(f"{tenant}/{name}", rule, caller_of(request))}

    @delete("/retention", status_code=200, sync_to_thread=True)
    def clear_retention(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart
    ) -> dict[str, RetentionRule | None]:
        """Keep every version. For admins."""
        return {"rule": registry_of(request).set_retention(f"{tenant}/{name}", None, caller_of(request))}


class LeaseController(Controller):
    """Leases: which versions a server has loaded."""

    path = "/leases"
    tags = ("upkeep",)

    @post(status_code=200, sync_to_thread=True)
    def lease(self, request: Request[Any, Any, Any], data: JSONBody[NewLeases]) -> list[str]:
        """Say that versions are in use from now on; the answer names those that are leased."""
        return registry_of(request).lease(
            data.versions,
            holder=data.holder,
            duration=timedelta(seconds=data.seconds),
            principal=caller_of(request),
        )

    @delete(status_code=200, sync_to_thread=True)
    def release(self, request: Request[Any, Any, Any], holder: HolderQuery) -> dict[str, int]:
        """Say that nothing is in use any more."""
        return {"released": registry_of(request).release_leases(holder, principal=caller_of(request))}
