"""Retention: how long the versions of an adapter are kept. What is in use or may be needed at once is always kept.

A rule keeps the last N versions, and those of the last D days; with both, a version that either of them keeps. Without
a rule everything is kept. Always kept are the newest version, and what is needed (`version_needs.py`): what an alias
points at or pointed at before, canaries, what is tagged, pinned or leased, and experts of mixtures. The rules take
effect when garbage is collected (`gc.py`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit
from registry.database import Database
from registry.decoding import decode
from registry.errors import InvalidValueError
from registry.lookup import find_adapter
from registry.models import AdapterRow, RetentionRow, VersionRow
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.retention_rule import DAYS_LIMIT, VERSIONS_LIMIT, RetentionRule
from registry.version_needs import needed_ids


class Retention:
    """The rules. Holds no state but the database, so threads may share it. One method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rule(self, name: AdapterName, principal: Principal) -> RetentionRule | None:
        """The adapter's rule; None where everything is kept. Raises NotFoundError, PermissionDeniedError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            principal.require(Role.READER, name, action="see the retention of")
            return read_rule(session, adapter)

    def set_rule(self, name: AdapterName, rule: RetentionRule | None, principal: Principal) -> RetentionRule | None:
        """Set the adapter's rule; None keeps everything. Raises NotFoundError, PermissionDeniedError."""
        if rule is not None:
            _check(rule)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.ADMIN, name, action="set the retention of")
            row = session.get(RetentionRow, adapter.id)
            if rule is not None:
                document = json.dumps(msgspec.to_builtins(rule), sort_keys=True)
                values = {"document": document, "set_by": principal.actor, "set_at": now}
                session.merge(RetentionRow(adapter_id=adapter.id, **values))
            elif row is not None:
                session.delete(row)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="set_retention",
                subject=str(name),
                keep_last=None if rule is None else rule.keep_last,
                keep_days=None if rule is None else rule.keep_days,
            )
        return rule


def read_rule(session: Session, adapter: AdapterRow) -> RetentionRule | None:
    """The adapter's rule, in somebody's transaction."""
    row = session.get(RetentionRow, adapter.id)
    return None if row is None else decode(row.document, RetentionRule)


def unneeded_versions(session: Session, adapter: AdapterRow, rule: RetentionRule, now: datetime) -> list[VersionRow]:
    """The versions that the rule does not keep and that nothing else needs, oldest first."""
    versions = session.scalars(
        select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(VersionRow.number.desc())
    ).all()
    needed = needed_ids(session, adapter, now)
    unneeded = []
    for position, version in enumerate(versions):
        is_recent = position < (rule.keep_last or 1)
        is_young = rule.keep_days is not None and version.created_at > now - timedelta(days=rule.keep_days)
        if not (is_recent or is_young or version.id in needed):
            unneeded.append(version)
    return unneeded[::-1]


def _check(rule: RetentionRule) -> None:
    if rule.keep_last is None and rule.keep_days is None:
        raise InvalidValueError("retention", "it keeps neither a number of versions nor days")
    for field, value, limit in (
        ("keep_last", rule.keep_last, VERSIONS_LIMIT),
        ("keep_days", rule.keep_days, DAYS_LIMIT),
    ):
        if value is not None and not 1 <= value <= limit:
            raise InvalidValueError(field, f"it is not between 1 and {limit:,}")
