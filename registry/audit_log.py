"""The audit log as it is read: entries, newest first, and whether the chain of hashes is whole.

Whoever may write to the database can make a new chain from the start. So the newest hash can be printed and kept
elsewhere (`loraplex audit verify`), and given to a later verification (`--expect HASH`), which then finds that too.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.audit import NO_HASH, Head, hash_of, read_head
from registry.audit_checkpoint import PRUNE_ACTION, AuditCheckpoint, read_checkpoint
from registry.audit_entry import ENTRIES_LIMIT, AuditEntry, AuditVerification
from registry.database import Database
from registry.errors import InvalidValueError
from registry.models import AuditRow
from registry.names import SHA256_DIGITS
from registry.principal import Principal, Role

ROWS_PER_FETCH = 1000


class AuditLog:
    """The audit log. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def entries(self, *, tenant: str | None, before: int | None, limit: int, principal: Principal) -> list[AuditEntry]:
        """The newest entries, of one tenant or of all, with ids below `before`.

        Raises PermissionDeniedError: an admin may read its tenant's, the operator all. Raises InvalidValueError.
        """
        if tenant is None:
            principal.require_operator(action="read the audit log of", subject="all tenants")
        else:
            principal.require_tenant(Role.ADMIN, tenant, action="read the audit log of")
        if not 1 <= limit <= ENTRIES_LIMIT:
            raise InvalidValueError("limit", f"it is not between 1 and {ENTRIES_LIMIT}")
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(AuditRow.tenant == tenant)
        if before is not None:
            query = query.where(AuditRow.id < before)
        with self._database.reading() as session:
            return [_to_entry(row) for row in session.scalars(query)]

    def verify(self, *, expect: str | None, principal: Principal) -> AuditVerification:
        """Compute every hash again. `expect` is a hash that must be in the chain: one that was kept elsewhere.

        Raises InvalidValueError, PermissionDeniedError.
        """
        principal.require_operator(action="verify", subject="the audit log")
        if expect is not None and len(expect) != SHA256_DIGITS:
            raise InvalidValueError("expect", f"it has {SHA256_DIGITS} digits, as `loraplex audit verify` prints it")
        with self._database.reading() as session:
            return _Walk(session, expect).verification()


class _Walk:
    """One verification: from the checkpoint, or the first row, to the end. Only `verification` changes it."""

    def __init__(self, session: Session, expect: str | None) -> None:
        self._session = session
        self._expect = expect
        self._checkpoint = read_checkpoint(session)
        self._faults: list[str] = []
        self._recorded: dict[str, Any] | None = None

    def verification(self) -> AuditVerification:
        """Walk, and say what was found."""
        start, rows = self._checkpoint, 0
        previous, is_chained = (NO_HASH, False) if start is None else (start.row_hash, True)
        is_expected_met = self._expect is None or (start is not None and previous == self._expect)
        query = select(AuditRow).order_by(AuditRow.id).execution_options(yield_per=ROWS_PER_FETCH)
        for row in self._session.scalars(query):
            rows += 1
            if fault := fault_of(row, previous, is_chained=is_chained):
                self._faults.append(fault)
            is_chained = is_chained or row.row_hash is not None
            previous = row.row_hash or hash_of(row, previous)
            is_expected_met = is_expected_met or previous == self._expect
            if row.action == PRUNE_ACTION:
                self._recorded = json.loads(row.detail)
        pruned = 0 if start is None else start.rows
        head = read_head(self._session)
        self._faults += _faults_of_end(head, Head(previous, pruned + rows), is_chained=is_chained)
        self._faults += _faults_of_beginning(start, self._recorded)
        if not is_expected_met:
            self._faults.append(_not_met(self._expect, start))
        return AuditVerification(rows, previous if rows else None, tuple(self._faults), pruned)


def fault_of(row: AuditRow, previous: str, *, is_chained: bool) -> str | None:
    """What is wrong with a row, after the hash before it."""
    if row.row_hash is None:
        return f"row {row.id} has no hash, although rows before it have one" if is_chained else None
    if row.previous_hash != previous:
        return f"row {row.id} does not follow the row before it: one was taken out, put in or moved"
    if row.row_hash != hash_of(row, previous):
        return f"row {row.id} was changed"
    return None


def _faults_of_beginning(checkpoint: AuditCheckpoint | None, recorded: dict[str, Any] | None) -> list[str]:
    """The checkpoint that the log begins after must be the one that the log itself tells of."""
    if (None if checkpoint is None else checkpoint.as_detail()) == recorded:
        return []
    return ["the log does not begin where its own last pruning ended: rows were taken out past the registry"]


def _not_met(expect: str | None, checkpoint: AuditCheckpoint | None) -> str:
    why = f"the hash {expect} is not in the chain: rows that led to it were changed or taken out"
    if checkpoint is None:
        return why
    return f"{why}; or it is older than row {checkpoint.through}, up to which rows were pruned"


def _faults_of_end(head: Head | None, found: Head, *, is_chained: bool) -> list[str]:
    if head is None:
        return ["the end of the chain is not written down"] if is_chained else []
    if head == found:
        return []
    if head.rows > found.rows:
        return [f"{head.rows - found.rows} of {head.rows} rows are missing at the end"]
    return [f"the chain ends with {found.row_hash}, and {head.row_hash} is written down as its end"]


def _to_entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        row.id, row.at, row.actor, row.action, row.subject, row.tenant, json.loads(row.detail), row.row_hash
    )
