"""Writes the audit log: one row per change, inside the transaction of that change, in a chain of hashes.

Rows are kept aside until their transaction commits and are written as its last step but for events, one transaction at
a time. A row's hash covers the row and the hash before it; the newest hash and the number of rows stand in
`registry_meta`. So a row that is changed, taken out, put in, or cut off at the end is found (`audit_log.py`). The first
link covers every row that was there before rows were chained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from registry import locks
from registry.models import AuditRow, MetaRow

HEAD_KEY = "audit_head"
NO_HASH = "0" * 64
"""What stands before the first row of all."""
_PENDING = "loraplex_audit"


@dataclass(frozen=True)
class Head:
    """The end of the chain: the hash of the newest row, and how many rows there are."""

    row_hash: str
    rows: int


def record(
    session: Session,
    *,
    at: datetime,
    actor: str,
    action: str,
    subject: str,
    tenant: str | None = None,
    **detail: str | int | None,
) -> None:
    """Add a row. Nothing secret may be in the detail. `tenant` None is the one that the subject begins with, if any."""
    if tenant is None and "/" in subject:
        tenant = subject.partition("/")[0]
    if _PENDING not in session.info:
        session.info[_PENDING] = []
        event.listen(session, "before_commit", _write_pending, insert=True)  # before the events, whoever came first
    text = json.dumps(detail, sort_keys=True)
    session.info[_PENDING].append(
        AuditRow(at=at, actor=actor, action=action, subject=subject, detail=text, tenant=tenant)
    )


def hash_of(row: AuditRow, previous_hash: str) -> str:
    """The hash of a row: SHA-256 over canonical JSON of what it says and of the hash before it."""
    document = {
        "action": row.action,
        "actor": row.actor,
        "at": row.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "detail": row.detail,
        "previous_hash": previous_hash,
        "subject": row.subject,
        "tenant": row.tenant,
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def hash_of_unchained(rows: Iterable[AuditRow]) -> Head:
    """The link over the rows that have no hash of their own, oldest first."""
    row_hash, count = NO_HASH, 0
    for row in rows:
        row_hash, count = hash_of(row, row_hash), count + 1
    return Head(row_hash, count)


def read_head(session: Session) -> Head | None:
    """The end of the chain as it was last written down; None where nothing is chained yet."""
    value = session.scalar(select(MetaRow.value).where(MetaRow.key == HEAD_KEY))
    return None if value is None else Head(**json.loads(value))


def write_head(session: Session, head: Head) -> None:
    """Write down the end of the chain."""
    session.merge(MetaRow(key=HEAD_KEY, value=json.dumps({"row_hash": head.row_hash, "rows": head.rows})))


def _write_pending(session: Session) -> None:
    pending: list[AuditRow] = session.info[_PENDING]
    if not pending or session.in_nested_transaction():
        return
    session.flush()
    locks.hold(session, locks.Lock.AUDIT)
    head = read_head(session) or hash_of_unchained(session.scalars(select(AuditRow).order_by(AuditRow.id)))
    for row in pending:
        row.previous_hash = head.row_hash
        row.row_hash = hash_of(row, head.row_hash)
        head = Head(row.row_hash, head.rows + 1)
        session.add(row)
        session.flush()
    write_head(session, head)
    session.flush()
    pending.clear()
