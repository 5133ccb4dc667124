"""Canaries inside a transaction that others own: found, and ended with their alias's next move."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.event import EventKind
from registry.models import AdapterRow, CanaryRow, VersionRow
from registry.names import AdapterName
from registry.version import Canary, Visibility


def find_canary(session: Session, name: AdapterName, adapter_id: int, alias: str) -> Canary | None:
    """The canary that runs on this alias."""
    found = find_canaries(session, name, adapter_id)
    return next((canary for canary in found if canary.alias == alias), None)


def find_canaries(session: Session, name: AdapterName, adapter_id: int) -> list[Canary]:
    """The canaries that run on an adapter's aliases, by alias."""
    query = select(CanaryRow, VersionRow).join(VersionRow, VersionRow.id == CanaryRow.version_id)
    rows = session.execute(query.where(CanaryRow.adapter_id == adapter_id).order_by(CanaryRow.alias))
    return [
        Canary(str(name), row.alias, version.number, version.digest, row.permille, row.actor, row.started_at)
        for row, version in rows
    ]


def end_canary(
    session: Session, name: AdapterName, adapter: AdapterRow, alias: str, *, actor: str, why: str, at: datetime
) -> Canary | None:
    """End the alias's canary, if one runs, and record why. The adapter's row is locked by the caller."""
    canary = find_canary(session, name, adapter.id, alias)
    if canary is not None:
        session.delete(session.get_one(CanaryRow, (adapter.id, alias)))
        session.flush()
        record_canary(session, EventKind.CANARY_ENDED, adapter, canary, actor=actor, at=at, why=why)
    return canary


def record_canary(
    session: Session, kind: EventKind, adapter: AdapterRow, canary: Canary, *, actor: str, at: datetime, **detail: Any
) -> None:
    """The audit row and the event of a canary's change."""
    facts = {"number": canary.number, "digest": canary.digest, "permille": canary.permille, **detail}
    subject = f"{canary.adapter}@{canary.alias}"
    audit.record(session, at=at, actor=actor, action=kind.value.replace(".", "_"), subject=subject, **facts)
    events.record(
        session,
        at=at,
        kind=kind,
        tenant=canary.adapter.partition("/")[0],
        adapter=canary.adapter,
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": actor, "alias": canary.alias, **facts},
    )
