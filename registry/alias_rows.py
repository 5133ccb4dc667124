"""The moves of aliases inside a transaction that others own: read, written, and told of."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.canary_rows import end_canary
from registry.events import EventKind
from registry.failpoints import reach
from registry.models import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from registry.names import AdapterName
from registry.policies import GateVerdict, read_gate, write_gate
from registry.principal import Principal
from registry.version import AliasMove, MoveKind, Visibility


def find_moves(session: Session, adapter: AdapterRow, alias: str) -> list[AliasMoveRow]:
    """The alias's history, oldest first; the last one says where it points."""
    query = select(AliasMoveRow).where(AliasMoveRow.adapter_id == adapter.id, AliasMoveRow.alias == alias)
    return list(session.scalars(query.order_by(AliasMoveRow.sequence)))


def record_move(
    session: Session,
    name: AdapterName,
    adapter: AdapterRow,
    alias: str,
    kind: MoveKind,
    moves: list[AliasMoveRow],
    version: VersionRow,
    evidence: str,
    principal: Principal,
    gate: GateVerdict | None,
) -> AliasMove:
    """Point the alias at the version, which ends its canary. The adapter's row is locked by the caller."""
    now = datetime.now(UTC)
    row = AliasMoveRow(
        adapter_id=adapter.id,
        alias=alias,
        sequence=len(moves) + 1,
        kind=kind.value,
        from_number=moves[-1].to_number if moves else None,
        to_number=version.number,
        actor=principal.actor,
        evidence=evidence,
        moved_at=now,
        gate=write_gate(gate),
    )
    session.add(row)
    session.merge(AliasRow(adapter_id=adapter.id, name=alias, version_id=version.id, moved_at=now))
    session.flush()
    end_canary(session, name, adapter, alias, actor=principal.actor, why=kind.value, at=now)
    audit.record(
        session,
        at=now,
        actor=principal.actor,
        action=kind.value,
        subject=f"{name}@{alias}",
        from_number=row.from_number,
        to_number=row.to_number,
    )
    events.record(
        session,
        at=now,
        kind=EventKind.ALIAS_PROMOTED if kind is MoveKind.PROMOTE else EventKind.ALIAS_ROLLED_BACK,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={
            "actor": principal.actor,
            "alias": alias,
            "from_version": row.from_number,
            "to_version": row.to_number,
            "sequence": row.sequence,
            "digest": version.digest,
            "base_fingerprint": version.base_fingerprint,
        },
    )
    reach("promote.before_commit")
    return to_move(name, row)


def to_move(name: AdapterName, row: AliasMoveRow) -> AliasMove:
    """The row as a value."""
    return AliasMove(
        adapter=str(name),
        alias=row.alias,
        sequence=row.sequence,
        kind=MoveKind(row.kind),
        from_number=row.from_number,
        to_number=row.to_number,
        actor=row.actor,
        evidence=row.evidence,
        moved_at=row.moved_at,
        gate=read_gate(row.gate),
    )
