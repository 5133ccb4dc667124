"""What tenants demand of adapters, in the database. One method is one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import select

from registry import audit
from registry.database import Database
from registry.models import TenantRow
from registry.principal import Principal, Role
from registry.tenant_policy import TenantPolicy, parse_tenant_policy, read_tenant_policy
from registry.tenant_rows import find_tenant


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
            row = find_tenant(session, tenant, lock=True)
            policy = parse_tenant_policy(msgspec.structs.asdict(read_tenant_policy(row.policy)) | dict(changes))
            row.policy = json.dumps(json.loads(row.policy) | msgspec.structs.asdict(policy), sort_keys=True)
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
