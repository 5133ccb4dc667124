"""Garbage collection: what nothing needs any more is taken away, and its bytes are free again.

    1 retention   versions that an adapter's rule does not keep are deleted (`retention.py`)
    2 forget      a tenant's blobs whose lease is over and that nothing of the tenant refers to: their bytes are free
    3 sweep       blobs that no tenant has and nothing refers to are deleted from the store

A publish may run at any moment. It reserves its blobs before it writes them (`quotas.py`), and what is reserved is
neither forgotten nor swept. A blob is swept inside of a write transaction, which excludes reserving: the sweep sees who
reserved before it, and who reserves after it writes the blob anew. A crash leaves at most blobs that nobody has, which
the next run sweeps. What was written or reserved within the grace period stays in any case.

A dry run makes the same steps in one transaction, which is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from registry import audit, locks
from registry.blobs import BlobStore, StoredBlob
from registry.database import Database
from registry.deletion import remove_version
from registry.errors import InvalidValueError
from registry.failpoints import reach
from registry.gc_report import GRACE, GcReport
from registry.leases import forget_expired
from registry.models import AdapterRow, CommitFileRow, RetentionRow, TenantBlobRow, TenantRow, VersionFileRow
from registry.names import AdapterName
from registry.principal import Principal
from registry.retention import read_rule, unneeded_versions
from registry.usage import forget, referenced

T = TypeVar("T")

GRACE_LIMIT = timedelta(days=365)
RETENTION_ACTOR = "retention"
BLOBS_PER_SWEEP = 20
"""Blobs deleted in one transaction, while writers wait."""
DIGESTS_PER_QUERY = 500
NAMES_SHOWN = 1_000


class _UndoneError(Exception):
    """Ends the transaction of a dry run."""


class GarbageCollection:
    """Collects the garbage of one registry. Threads and processes may run it at once."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def run(
        self, *, principal: Principal, grace: timedelta = GRACE, dry_run: bool = False, now: datetime | None = None
    ) -> GcReport:
        """Take away what nothing needs. `now` is the moment to judge by; None is the present one.

        Raises PermissionDeniedError, InvalidValueError, StorageError.
        """
        principal.require_operator(action="collect the garbage of", subject="the registry")
        if not timedelta(0) <= grace <= GRACE_LIMIT:
            raise InvalidValueError("grace", f"it is not between 0 and {GRACE_LIMIT.days} days")
        run = _Run(now or datetime.now(UTC), grace, GcReport(dry_run))
        stored = [blob for blob in self._blobs.all() if blob.modified_at < run.oldest_kept]
        if dry_run:
            with suppress(_UndoneError), self._database.writing() as session:
                for adapter_id in _adapters_with_rules(session):
                    run.retain(session, adapter_id)
                for tenant_id in _tenants(session):
                    run.forget(session, tenant_id, run.forgettable(session, tenant_id))
                run.count(_unneeded(session, stored))
                raise _UndoneError
        else:
            self._collect(run, stored, principal)
        return run.report

    def _collect(self, run: _Run, stored: Sequence[StoredBlob], principal: Principal) -> None:
        self._blobs.remove_stale(now=datetime.now(UTC))
        with self._database.reading() as session:
            adapters, tenants = _adapters_with_rules(session), _tenants(session)
        for adapter_id in adapters:
            with self._database.writing() as session:
                run.retain(session, adapter_id)
        for tenant_id in tenants:
            with self._database.reading() as session:
                candidates = run.forgettable(session, tenant_id)
            for digests in _parts(candidates, DIGESTS_PER_QUERY):
                with self._database.writing() as session:
                    run.forget(session, tenant_id, digests)
                    reach("gc.before_forget")
        with self._database.reading() as session:
            doomed = list(_unneeded(session, stored))
        for part in _parts(doomed, BLOBS_PER_SWEEP):
            with self._database.writing() as session:
                locks.hold(session, locks.Lock.SWEEP)
                for blob in _unneeded(session, part):
                    reach("gc.before_delete")
                    self._blobs.delete(blob.sha256)
                    reach("gc.after_delete")
                    run.count([blob])
        with self._database.writing() as session:
            forget_expired(session, run.now)
            run.record(session, principal)


class _Run:
    """The steps of one run, each inside of a transaction that others own. Only `report` changes."""

    def __init__(self, now: datetime, grace: timedelta, report: GcReport) -> None:
        self.now = now
        self.oldest_kept = now - grace
        self.report = report

    def retain(self, session: Session, adapter_id: int) -> None:
        """Delete the adapter's versions that its rule does not keep."""
        tenant_id = session.scalar(select(AdapterRow.tenant_id).where(AdapterRow.id == adapter_id))
        if tenant_id is None:
            return
        tenant = session.get_one(TenantRow, tenant_id, with_for_update=True)
        adapter = session.get_one(AdapterRow, adapter_id, with_for_update=True)
        rule = read_rule(session, adapter)
        if rule is None:
            return
        name = AdapterName(tenant.name, adapter.name)
        for version in unneeded_versions(session, adapter, rule, self.now):
            self.report.versions_deleted += 1
            if len(self.report.versions) < NAMES_SHOWN:
                self.report.versions.append(f"{name}@{version.number}")
            remove_version(session, tenant, adapter, name, version, actor=RETENTION_ACTOR, now=self.now)

    def forgettable(self, session: Session, tenant_id: int) -> list[str]:
        """The blobs that the tenant does not need now: not leased, not young, not referred to."""
        tenant = session.get_one(TenantRow, tenant_id)
        query = select(TenantBlobRow.sha256).where(*self._is_over(tenant_id))
        found = session.scalars(query.order_by(TenantBlobRow.sha256)).all()
        parts = _parts(found, DIGESTS_PER_QUERY)
        return [sha256 for part in parts for sha256 in sorted(set(part) - referenced(session, tenant, part))]

    def forget(self, session: Session, tenant_id: int, digests: Sequence[str]) -> None:
        """Free the bytes of these blobs, where the tenant does still not need them."""
        tenant = session.get_one(TenantRow, tenant_id, with_for_update=True)
        for part in _parts(digests, DIGESTS_PER_QUERY):
            query = select(TenantBlobRow.sha256).where(*self._is_over(tenant_id), TenantBlobRow.sha256.in_(part))
            over = set(session.scalars(query))
            freed = forget(session, tenant, sorted(over - referenced(session, tenant, over)))
            if freed:
                before = self.report.tenant_bytes_freed.get(tenant.name, 0)
                self.report.tenant_bytes_freed[tenant.name] = before + freed
        session.flush()

    def _is_over(self, tenant_id: int) -> tuple[ColumnElement[bool], ...]:
        return (
            TenantBlobRow.tenant_id == tenant_id,
            TenantBlobRow.created_at < self.oldest_kept,
            or_(TenantBlobRow.leased_until.is_(None), TenantBlobRow.leased_until < self.now),
        )

    def count(self, blobs: Iterable[StoredBlob]) -> None:
        """These blobs are deleted."""
        for blob in blobs:
            self.report.blobs_deleted += 1
            self.report.blob_bytes_deleted += blob.size
            if len(self.report.blobs) < NAMES_SHOWN:
                self.report.blobs.append(blob.sha256)

    def record(self, session: Session, principal: Principal) -> None:
        """Write down in the audit log what was taken away, if anything was."""
        report = self.report
        if report.versions_deleted or report.tenant_bytes_freed or report.blobs_deleted:
            audit.record(
                session,
                at=self.now,
                actor=principal.actor,
                action="gc",
                subject="registry",
                versions=report.versions_deleted,
                blobs=report.blobs_deleted,
                blob_bytes=report.blob_bytes_deleted,
            )


def _adapters_with_rules(session: Session) -> Sequence[int]:
    return session.scalars(select(RetentionRow.adapter_id).order_by(RetentionRow.adapter_id)).all()


def _tenants(session: Session) -> Sequence[int]:
    return session.scalars(select(TenantRow.id).order_by(TenantRow.id)).all()


def _unneeded(session: Session, blobs: Sequence[StoredBlob]) -> Iterator[StoredBlob]:
    """Those of these blobs that no tenant has or has reserved, and that no version or commit refers to."""
    for part in _parts(blobs, DIGESTS_PER_QUERY):
        digests = [blob.sha256 for blob in part]
        needed: set[str] = set()
        for column in (TenantBlobRow.sha256, VersionFileRow.sha256, CommitFileRow.sha256):
            needed.update(session.scalars(select(column).where(column.in_(digests))))
        yield from (blob for blob in part if blob.sha256 not in needed)


def _parts(values: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), count):
        yield values[start : start + count]
