"""Checks a whole registry: every byte of every blob that something refers to, and what must hold in the catalog.

A fault says what is wrong and what it hurts. Repairing does what loses nothing: counters are counted again, records of
blobs that are there are written again, and blobs that nobody has are collected. A blob that is missing or damaged comes
back only from its publisher (publishing the same files again heals it) or from a backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.audit_log import AuditLog
from registry.blobs import BlobStore
from registry.database import Database
from registry.errors import IntegrityError, StorageError
from registry.file_entry import Blob
from registry.fsck_report import Fault, FaultKind, FsckReport
from registry.gc import GarbageCollection
from registry.invariants import catalog_faults, unheld
from registry.models import (
    AdapterRow,
    AliasRow,
    CommitFileRow,
    CommitRow,
    TenantBlobRow,
    TenantRow,
    VersionFileRow,
    VersionRow,
)
from registry.principal import Principal
from registry.quotas import Quotas

HURTS_SHOWN = 20
OnBlob = Callable[[int, int], None]
"""Told after each blob: how many were read, of how many."""


class Fsck:
    """Checks and repairs one registry. Publishing may go on meanwhile."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs
        self._quotas = Quotas(database)
        self._audit_log = AuditLog(database)

    def run(self, *, principal: Principal, repair: bool = False, on_blob: OnBlob | None = None) -> FsckReport:
        """Check everything; with `repair`, first mend what can be mended without losing anything.

        Raises PermissionDeniedError, StorageError.
        """
        principal.require_operator(action="check", subject="the whole registry")
        report = FsckReport()
        if repair:
            report.repaired += self._repair(principal)
        report.faults += [Fault(FaultKind.CATALOG, fault) for fault in self._catalog_faults()]
        try:
            self._quotas.check_integrity()
        except StorageError as error:
            report.faults.append(Fault(FaultKind.USAGE, error.message))
        audit = self._audit_log.verify(expect=None, principal=principal)
        report.faults += [Fault(FaultKind.AUDIT, fault) for fault in audit.faults]
        self._check_blobs(report, on_blob)
        return report

    def check_integrity(self) -> None:
        """As `run`, but raises the first fault: IntegrityError for a blob, else StorageError."""
        for fault in self._catalog_faults():
            raise StorageError(f"The catalog is damaged: {fault}. Restore it from a backup.")
        self._quotas.check_integrity()
        if faults := self._audit_log.verify(expect=None, principal=Principal.operator()).faults:
            raise StorageError(f"The audit log is damaged: {faults[0]}. Compare it with a backup.")
        for blob in sorted(self._referenced()):
            self._blobs.verify(blob)

    def _catalog_faults(self) -> list[str]:
        with self._database.reading() as session:
            return list(catalog_faults(session))

    def _referenced(self) -> set[Blob]:
        with self._database.reading() as session:
            versions = session.execute(select(VersionFileRow.sha256, VersionFileRow.size).distinct())
            commits = session.execute(select(CommitFileRow.sha256, CommitFileRow.size).distinct())
            return {Blob(*row) for row in versions} | {Blob(*row) for row in commits}

    def _check_blobs(self, report: FsckReport, on_blob: OnBlob | None) -> None:
        referenced = self._referenced()
        for position, blob in enumerate(sorted(referenced), start=1):
            if fault := self._blob_fault(blob):
                report.faults.append(fault)
            report.blobs, report.blob_bytes = report.blobs + 1, report.blob_bytes + blob.size
            if on_blob is not None:
                on_blob(position, len(referenced))
        needed = {blob.sha256 for blob in referenced}
        with self._database.reading() as session:
            needed.update(session.scalars(select(TenantBlobRow.sha256)))
        for stored in self._blobs.all():
            if stored.sha256 not in needed:
                report.orphans, report.orphan_bytes = report.orphans + 1, report.orphan_bytes + stored.size

    def _blob_fault(self, blob: Blob) -> Fault | None:
        try:
            self._blobs.verify(blob)
            size = self._blobs.size_of(blob.sha256)
        except IntegrityError as error:
            kind = FaultKind.MISSING_BLOB if error.found is None else FaultKind.DAMAGED_BLOB
            detail = f"blob {blob.sha256} is missing" if error.found is None else f"blob {blob.sha256} is damaged"
        except StorageError as error:
            kind, detail = FaultKind.DAMAGED_BLOB, f"blob {blob.sha256} cannot be read: {error.message}"
        else:
            if size == blob.size:
                return None
            kind = FaultKind.CATALOG
            detail = f"blob {blob.sha256} has {size} bytes, and the catalog says {blob.size}"
        if not self._is_still_referenced(blob):
            return None
        with self._database.reading() as session:
            return Fault(kind, detail, tuple(_hurt(session, blob.sha256)))

    def _is_still_referenced(self, blob: Blob) -> bool:
        """What was deleted since the check began is nobody's fault."""
        with self._database.reading() as session:
            columns = (VersionFileRow.sha256, CommitFileRow.sha256)
            found = (session.scalar(select(column).where(column == blob.sha256).limit(1)) for column in columns)
            return any(sha256 is not None for sha256 in found)

    def _repair(self, principal: Principal) -> list[str]:
        now = datetime.now(UTC)
        repaired = []
        with self._database.writing() as session:
            for tenant, sha256, size in list(unheld(session)):
                if self._blobs.size_of(sha256) != size:
                    continue
                tenant_id = session.scalars(select(TenantRow.id).where(TenantRow.name == tenant)).one()
                row = TenantBlobRow(tenant_id=tenant_id, sha256=sha256, size=size, created_at=now, is_stored=True)
                session.merge(row)
                repaired.append(f"recorded that {tenant} has blob {sha256}")
        repaired += [f"counted again what {tenant} has" for tenant in self._quotas.recount()]
        collected = GarbageCollection(self._database, self._blobs).run(principal=principal)
        if collected.blobs_deleted:
            repaired.append(f"deleted {collected.blobs_deleted} blobs that nobody has")
        return repaired


def _hurt(session: Session, sha256: str) -> Iterator[str]:
    """The versions, with their aliases, and the other commits that need this blob."""
    versions = (
        select(VersionRow.id, VersionRow.number, AdapterRow.name, TenantRow.name)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .join(VersionFileRow, VersionFileRow.version_id == VersionRow.id)
        .where(VersionFileRow.sha256 == sha256)
        .distinct()
        .order_by(TenantRow.name, AdapterRow.name, VersionRow.number)
        .limit(HURTS_SHOWN)
    )
    for version_id, number, adapter, tenant in session.execute(versions).all():
        aliases = session.scalars(select(AliasRow.name).where(AliasRow.version_id == version_id)).all()
        pointing = f" ({', '.join(sorted(aliases))})" if aliases else ""
        yield f"{tenant}/{adapter}@{number}{pointing}"
    commits = (
        select(CommitRow.id, AdapterRow.name, TenantRow.name)
        .join(AdapterRow, AdapterRow.id == CommitRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .join(CommitFileRow, CommitFileRow.commit_id == CommitRow.id)
        .where(CommitFileRow.sha256 == sha256, CommitRow.version_id.is_(None))
        .distinct()
        .limit(HURTS_SHOWN)
    )
    for commit, adapter, tenant in session.execute(commits):
        yield f"{tenant}/{adapter} commit {commit[:12]}"
