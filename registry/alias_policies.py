"""Policies of aliases in the database. One method is one transaction.

An alias may have a policy before it exists, so that its very first version is judged too.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.database import Database
from registry.errors import NotFoundError
from registry.event import EventKind
from registry.lookup import find_adapter
from registry.models import AdapterRow, AliasPolicyRow
from registry.names import AdapterName, parse_alias
from registry.policies import AliasPolicy, PolicyRecord, read_policy, write_policy
from registry.principal import Principal, Role
from registry.version import Visibility


class AliasPolicies:
    """Who sets the rules (the role admin), and what they are. Holds no state but the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, name: AdapterName, alias: str, policy: AliasPolicy, principal: Principal) -> PolicyRecord:
        """Set the alias's policy, in the place of the one before. Raises NotFoundError, PermissionDeniedError."""
        parse_alias(alias)
        now = datetime.now(UTC)
        document = write_policy(policy)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.ADMIN, name, action="set a policy of")
            row = AliasPolicyRow(adapter_id=adapter.id, alias=alias, document=document, set_by=principal.actor)
            row.set_at = now
            session.merge(row)
            _record(session, name, adapter, alias, "set_policy", principal, now, document)
        return PolicyRecord(str(name), alias, policy, principal.actor, now)

    def remove(self, name: AdapterName, alias: str, principal: Principal) -> None:
        """Take the policy away. Raises NotFoundError, PermissionDeniedError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.ADMIN, name, action="remove a policy of")
            row = session.get(AliasPolicyRow, (adapter.id, parse_alias(alias)))
            if row is None:
                raise _missing(name, alias)
            session.delete(row)
            _record(session, name, adapter, alias, "remove_policy", principal, now, None)

    def find(self, name: AdapterName, alias: str, principal: Principal) -> PolicyRecord:
        """The alias's policy. Raises NotFoundError."""
        found = [record for record in self.all(name, principal) if record.alias == parse_alias(alias)]
        if not found:
            raise _missing(name, alias)
        return found[0]

    def all(self, name: AdapterName, principal: Principal) -> list[PolicyRecord]:
        """The policies of an adapter's aliases, by alias. Raises NotFoundError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            query = select(AliasPolicyRow).where(AliasPolicyRow.adapter_id == adapter.id)
            return [
                PolicyRecord(str(name), row.alias, read_policy(row.document), row.set_by, row.set_at)
                for row in session.scalars(query.order_by(AliasPolicyRow.alias))
            ]


def _record(
    session: Session,
    name: AdapterName,
    adapter: AdapterRow,
    alias: str,
    action: str,
    principal: Principal,
    now: datetime,
    document: str | None,
) -> None:
    subject = f"{name}@{alias}"
    audit.record(session, at=now, actor=principal.actor, action=action, subject=subject, policy=document)
    events.record(
        session,
        at=now,
        kind=EventKind.ALIAS_POLICY,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": principal.actor, "alias": alias, "is_set": document is not None},
    )


def _missing(name: AdapterName, alias: str) -> NotFoundError:
    return NotFoundError(
        "policy", f"{name}@{alias}", f"Set one with `loraplex policy set {name} --alias {alias} FILE`."
    )
