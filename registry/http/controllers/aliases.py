"""Aliases: where they point, their history; promotion, rollback and deletion with `If-Match`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter

from registry.aliases import missing_alias
from registry.http.parameters import AliasPart, IfMatch, IfNoneMatch, NamePart, TenantPart, etag_of, expected_of
from registry.http.service import caller_of, registry_of
from registry.names import REFERENCE_CHARACTERS, VERSION_NUMBER_DIGITS, AdapterName
from registry.promote import EVIDENCE_CHARACTERS, REASON_CHARACTERS
from registry.version import AliasMove

Evidence = Annotated[str, msgspec.Meta(max_length=EVIDENCE_CHARACTERS, description="Why; kept in the history.")]
ReasonQuery = Annotated[
    str, QueryParameter(name="evidence", max_length=REASON_CHARACTERS, description="Why; kept in the history.")
]
NumberQuery = Annotated[
    int | None,
    QueryParameter(
        name="expected_version", ge=1, lt=10**VERSION_NUMBER_DIGITS, description="The version it must be at."
    ),
]
MOVED = {412: ResponseSpec(None, generate_examples=False, description="The alias moved meanwhile: `alias_moved`.")}


Number = Annotated[int, msgspec.Meta(ge=1, lt=10**VERSION_NUMBER_DIGITS, description="The version it must be at.")]
Selector = (
    Annotated[str, msgspec.Meta(min_length=1, max_length=REFERENCE_CHARACTERS)]
    | Annotated[int, msgspec.Meta(ge=1, lt=10**VERSION_NUMBER_DIGITS)]
)
"""A version's number (as text too), an alias or a digest. Its description is in `document.py`."""


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version the alias is to point at (null: the newest), why, and which it must point at before."""

    version: Selector | None = None
    evidence: Evidence = ""
    expected_version: Number | None = None


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the alias is moved back, and from which version."""

    evidence: Evidence = ""
    expected_version: Number | None = None


class AliasController(Controller):
    """Aliases of one adapter. Their ETag is the number of their last move."""

    path = "/adapters/{tenant:str}/{name:str}/aliases"
    tags = ("aliases",)

    @get(sync_to_thread=True)
    def list_aliases(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> dict[str, int]:
        """Version numbers by alias."""
        return registry_of(request).aliases(f"{tenant}/{name}", caller_of(request))

    @get("/{alias:str}", sync_to_thread=True)
    def show_alias(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> Response[AliasMove]:
        """The move that brought the alias to where it points, with its ETag."""
        newest = registry_of(request).alias_history(f"{tenant}/{name}", alias, caller_of(request))[0]
        if newest.to_number is None:
            raise missing_alias(AdapterName.parse(f"{tenant}/{name}"), alias)
        return _answer(newest)

    @get("/{alias:str}/history", sync_to_thread=True)
    def alias_history(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> list[AliasMove]:
        """Every move of the alias, newest first; also of one that was deleted."""
        return registry_of(request).alias_history(f"{tenant}/{name}", alias, caller_of(request))

    @put("/{alias:str}", sync_to_thread=True, responses=MOVED)
    def promote(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[Promotion],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response[AliasMove]:
        """Point the alias at a version; with `If-Match`, only if it has not moved since."""
        move = registry_of(request).promote(
            f"{tenant}/{name}" if data.version is None else f"{tenant}/{name}@{data.version}",
            alias,
            principal=caller_of(request),
            expected=expected_of(if_match, if_none_match, data.expected_version),
            evidence=data.evidence,
        )
        return _answer(move)

    @post("/{alias:str}/rollback", status_code=200, sync_to_thread=True, responses=MOVED)
    def rollback(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[Rollback],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
        if_match: IfMatch = None,
    ) -> Response[AliasMove]:
        """Point the alias back to where it was before its last promotion."""
        move = registry_of(request).rollback(
            f"{tenant}/{name}",
            alias,
            principal=caller_of(request),
            expected=expected_of(if_match, None, data.expected_version),
            evidence=data.evidence,
        )
        return _answer(move)

    @delete("/{alias:str}", status_code=200, sync_to_thread=True, responses=MOVED)
    def delete_alias(
        self,
        request: Request[Any, Any, Any],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
        evidence: ReasonQuery = "",
        expected_version: NumberQuery = None,
        if_match: IfMatch = None,
    ) -> AliasMove:
        """Take the alias away; its history stays. For promoters, and for admins where the alias has a policy.

        Its canary ends, and no version is kept for its sake any more. Promoting a version makes it anew.
        """
        return registry_of(request).delete_alias(
            f"{tenant}/{name}",
            alias,
            principal=caller_of(request),
            expected=expected_of(if_match, None, expected_version),
            evidence=evidence,
        )


def _answer(move: AliasMove) -> Response[AliasMove]:
    return Response(move, headers={"etag": etag_of(move)})
