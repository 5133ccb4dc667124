"""What a tenant demands of adapters that enter: the JSON document in `tenants.policy`, and how it is read and set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import select

from registry import audit
from registry.database import Database
from registry.decoding import convert
from registry.errors import InvalidValueError, NotFoundError
from registry.models import TenantRow
from registry.principal import Principal, Role

UPSTREAM_CHARACTERS = 1_000
_UPSTREAM = r"^https?://[^/@?#]+/[^@?#]+\Z"


class TenantPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`unverified_base`: whether an adapter may enter whose base nobody recorded; only shapes and names suggest it.

    `require_signature`: whether an alias moves only to a version that a key of the tenant has signed, with or without a
    policy of its own. `upstream`: where unknown adapters are pulled in from, `https://host/org`, when the tenant first
    reads them.
    """

    unverified_base: Literal["allow", "refuse"] = "allow"
    require_signature: bool = False
    upstream: Annotated[str, msgspec.Meta(max_length=UPSTREAM_CHARACTERS, pattern=_UPSTREAM)] | None = None


class TenantPolicies:
    """The policies of tenants. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, tenant: str) -> TenantPolicy:
        """The tenant's policy; the default one for a tenant that is only about to be made."""
        with self._database.reading() as session:
            document = session.scalar(select(TenantRow.policy).where(TenantRow.name == tenant))
        return TenantPolicy() if document is None else read_tenant_policy(document)

    def read(self, tenant: str, principal: Principal) -> TenantPolicy:
        """As `of`, for a caller. Raises PermissionDeniedError for another tenant's."""
        principal.require_tenant(Role.READER, tenant, action="read the policy of")
        return self.of(tenant)

    def set(self, tenant: str, changes: Mapping[str, Any], *, principal: Principal) -> TenantPolicy:
        """Change some fields of a policy; the others stay. Needs the role admin; an empty `upstream` is none.

        Raises PermissionDeniedError, NotFoundError, InvalidValueError.
        """
        principal.require_tenant(Role.ADMIN, tenant, action="set the policy of")
        if "upstream" in changes:  # it decides where this server connects to
            principal.require_operator(action="set the upstream of", subject=tenant)
            changes = {**changes, "upstream": changes["upstream"] or None}
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row = session.scalar(select(TenantRow).where(TenantRow.name == tenant).with_for_update())
            if row is None:
                raise NotFoundError("tenant", tenant, "List them with `loraplex tenant ls`.")
            kept = json.loads(row.policy)
            known = {field: kept[field] for field in TenantPolicy.__struct_fields__ if field in kept}
            policy = _parse(known | dict(changes))
            row.policy = json.dumps(kept | msgspec.to_builtins(policy), sort_keys=True)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="set_tenant_policy",
                subject=tenant,
                tenant=tenant,
                unverified_base=policy.unverified_base,
                require_signature=int(policy.require_signature),
                upstream=policy.upstream,
            )
        return policy


def read_tenant_policy(document: str) -> TenantPolicy:
    """The policy as the database keeps it; fields of a newer release are left alone."""
    kept = json.loads(document)
    known = {field: kept[field] for field in TenantPolicy.__struct_fields__ if field in kept}
    return convert(known, TenantPolicy)


def _parse(document: dict[str, Any]) -> TenantPolicy:
    try:
        return convert(document, TenantPolicy)
    except msgspec.ValidationError as error:
        raise InvalidValueError("policy", str(error)) from error
