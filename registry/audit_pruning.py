"""Takes the oldest rows out of the audit log, so that what is left can still be verified.

The rows that go are verified first: nothing is taken out of a log that is broken. The end of the chain up to there is
kept as a checkpoint (`audit_checkpoint.py`), and the log has a row that tells of it.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import audit, locks
from registry.audit import NO_HASH, hash_of
from registry.audit_checkpoint import PRUNE_ACTION, AuditCheckpoint, read_checkpoint, write_checkpoint
from registry.audit_log import fault_of
from registry.database import Database
from registry.errors import StorageError
from registry.models import AuditRow
from registry.principal import Principal

ROWS_AT_ONCE = 20_000
"""Rows of one transaction: other writers wait meanwhile."""


def prune_audit(database: Database, *, before: datetime, now: datetime, principal: Principal) -> int:
    """Take out every row that was written before a moment, but for the newest one; returns how many.

    Raises PermissionDeniedError, and StorageError where one of these rows was changed.
    """
    principal.require_operator(action="prune", subject="the audit log")
    count = 0
    while True:
        with database.writing() as session:
            taken = _prune_some(session, before, now, principal)
        count += taken
        if taken < ROWS_AT_ONCE:
            return count


def _prune_some(session: Session, before: datetime, now: datetime, principal: Principal) -> int:
    locks.hold(session, locks.Lock.AUDIT)
    last = read_checkpoint(session)
    previous, is_chained = (NO_HASH, False) if last is None else (last.row_hash, True)
    newest = session.scalar(select(func.max(AuditRow.id))) or 0
    through, count = 0, 0
    for row in session.scalars(select(AuditRow).where(AuditRow.id < newest).order_by(AuditRow.id).limit(ROWS_AT_ONCE)):
        if row.at >= before:
            break
        if fault := fault_of(row, previous, is_chained=is_chained):
            raise StorageError(
                f"The audit log is broken: {fault}. Nothing was taken out of it; look with `loraplex audit verify`."
            )
        is_chained = is_chained or row.row_hash is not None
        previous = row.row_hash or hash_of(row, previous)
        through, count = row.id, count + 1
    if count:
        session.expire_all()
        checkpoint = AuditCheckpoint(through, count + (0 if last is None else last.rows), previous)
        write_checkpoint(session, checkpoint)
        session.execute(delete(AuditRow).where(AuditRow.id <= through).execution_options(synchronize_session=False))
        audit.record(
            session,
            at=now,
            actor=principal.actor,
            action=PRUNE_ACTION,
            subject="audit",
            **checkpoint.as_detail(),
        )
    return count
