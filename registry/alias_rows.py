"""The moves of aliases inside a transaction that others own: read, written, and told of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.canary_rows import end_canary
from registry.event import EventKind
from registry.failpoints import reach
from registry.models import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from registry.names import AdapterName
from registry.policies import GateVerdict, read_gate, write_gate
from registry.principal import Principal
from registry.version import AliasMove, MoveKind, Visibility

TOLD = {
    MoveKind.PROMOTE: ("promote", EventKind.ALIAS_PROMOTED),
    MoveKind.ROLLBACK: ("rollback", EventKind.ALIAS_ROLLED_BACK),
    MoveKind.DELETE: ("delete_alias", EventKind.ALIAS_DELETED),
}
"""What a move is called in the audit log and in the feed."""


def find_moves(session: Session, adapter: AdapterRow, alias: str) -> list[AliasMoveRow]:
    """The alias's history, oldest first; the last one says where it points."""
    query = select(AliasMoveRow).where(AliasMoveRow.adapter_id == adapter.id, AliasMoveRow.alias == alias)
    return list(session.scalars(query.order_by(AliasMoveRow.sequence)))


def current_number(moves: Sequence[AliasMoveRow]) -> int | None:
    """The version that an alias of this history points at; None where it was never there, or was deleted."""
    return moves[-1].to_number if moves else None


def record_move(
    session: Session,
    name: AdapterName,
    adapter: AdapterRow,
    alias: str,
    kind: MoveKind,
    moves: list[AliasMoveRow],
    version: VersionRow | None,
    evidence: str,
    principal: Principal,
    gate: GateVerdict | None = None,
) -> AliasMove:
    """Point the alias at the version, or nowhere, which ends its canary. The caller has locked the adapter's row."""
    now = datetime.now(UTC)
    row = AliasMoveRow(
        adapter_id=adapter.id,
        alias=alias,
        sequence=len(moves) + 1,
        kind=kind.value,
        from_number=current_number(moves),
        to_number=None if version is None else version.number,
        actor=principal.actor,
        evidence=evidence,
        moved_at=now,
        gate=write_gate(gate),
    )
    session.add(row)
    if version is None:
        session.delete(session.get_one(AliasRow, (adapter.id, alias)))
    else:
        session.merge(AliasRow(adapter_id=adapter.id, name=alias, version_id=version.id, moved_at=now))
    session.flush()
    end_canary(session, name, adapter, alias, actor=principal.actor, why=kind.value, at=now)
    audit.record(
        session,
        at=now,
        actor=principal.actor,
        action=TOLD[kind][0],
        subject=f"{name}@{alias}",
        from_number=row.from_number,
        to_number=row.to_number,
    )
    _tell(session, name, adapter, row, version)
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


def _tell(
    session: Session, name: AdapterName, adapter: AdapterRow, move: AliasMoveRow, version: VersionRow | None
) -> None:
    document: dict[str, Any] = {
        "actor": move.actor,
        "alias": move.alias,
        "from_version": move.from_number,
        "sequence": move.sequence,
    }
    if version is not None:
        document |= {
            "to_version": version.number,
            "digest": version.digest,
            "base_fingerprint": version.base_fingerprint,
        }
    events.record(
        session,
        at=move.moved_at,
        kind=TOLD[MoveKind(move.kind)][1],
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document=document,
    )
