"""Quotas: bytes are reserved before they are uploaded, versions are counted when they are made.

    reserve --> (the blob is written and verified) --> mark_stored --> a version or commit claims it (`usage.claim`)
       `-- release: it was not written after all

A row whose lease is over and that nothing of the tenant refers to is forgotten by garbage collection (`gc.py`), which
is how bytes become free again. Whether somebody may act for a tenant is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, locks
from registry.database import Database
from registry.errors import InvalidValueError, StorageError
from registry.models import TenantBlobRow, TenantRow
from registry.principal import Principal, Role
from registry.quota_usage import Usage
from registry.tenant_rows import find_tenant
from registry.usage import (
    blob_rows,
    charge_bytes,
    count,
    forget,
    locked_tenant,
    referenced,
    unreserved,
)

LEASE = timedelta(hours=24)
"""How long an upload has until its commit."""
QUOTA_BYTES_LIMIT = 1 << 60
QUOTA_VERSIONS_LIMIT = 1_000_000_000


@dataclass(frozen=True)
class Reservation:
    """Room for some blobs. `new` are those that the tenant did not have and had not reserved before."""

    tenant: str
    new: frozenset[str]
    leased_until: datetime


class Quotas:
    """Usage and reservations. One method is one transaction; threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(
        self, tenant: str, sizes: Iterable[tuple[str, int]], *, principal: Principal, lease: timedelta = LEASE
    ) -> Reservation:
        """Make room for blobs, given as (SHA-256 in hexadecimal, bytes): all of them or none. They are leased.

        The operator makes the tenant by it where there is none. Raises QuotaExceededError, NotFoundError.
        """
        asked = dict(sizes)
        if any(not 0 <= size <= QUOTA_BYTES_LIMIT for size in asked.values()):
            raise InvalidValueError("size", f"it is not between 0 and {QUOTA_BYTES_LIMIT}")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row = locked_tenant(session, tenant, principal, now)
            locks.hold(session, locks.Lock.SWEEP, shared=True)
            new = _reserve(session, row, asked, now, now + lease)
        return Reservation(tenant, new, now + lease)

    def mark_stored(self, tenant: str, sizes: Iterable[tuple[str, int]]) -> None:
        """The blobs are written and verified, with these sizes.

        Raises ConflictError where nothing is reserved (any more), and QuotaExceededError where the true size is larger
        than the reserved one and does not fit.
        """
        stored = dict(sizes)
        with self._database.writing() as session:
            tenant_row = find_tenant(session, tenant, lock=True)
            rows = blob_rows(session, tenant_row, stored)
            if missing := sorted(stored.keys() - rows.keys()):
                raise unreserved(missing[0])
            more = sum(size - rows[sha256].size for sha256, size in stored.items())
            for sha256, size in stored.items():
                rows[sha256].size, rows[sha256].is_stored = size, True
            charge_bytes(session, tenant_row, more, datetime.now(UTC))

    def present(self, tenant: str, digests: Iterable[str]) -> frozenset[str]:
        """Those of these blobs that the tenant itself has; their leases are extended."""
        return self.extend_lease(tenant, digests, only_stored=True)

    def extend_lease(
        self, tenant: str, digests: Iterable[str], *, lease: timedelta = LEASE, only_stored: bool = False
    ) -> frozenset[str]:
        """Lease what the tenant has or has reserved of these blobs, from now on; returns the digests of those."""
        until = datetime.now(UTC) + lease
        with self._database.writing() as session:
            tenant_row = session.scalar(select(TenantRow).where(TenantRow.name == tenant).with_for_update())
            if tenant_row is None:
                return frozenset()
            rows = blob_rows(session, tenant_row, digests).values()
            found = [row for row in rows if row.is_stored or not only_stored]
            for row in found:
                _lease(row, until)
            return frozenset(row.sha256 for row in found)

    def release(self, reservation: Reservation) -> None:
        """Give back what the reservation took, but for blobs that are in use or that were leased again since."""
        with self._database.writing() as session:
            tenant_row = find_tenant(session, reservation.tenant, lock=True)
            rows = blob_rows(session, tenant_row, reservation.new).values()
            mine = [row.sha256 for row in rows if row.leased_until == reservation.leased_until]
            forget(session, tenant_row, sorted(set(mine) - referenced(session, tenant_row, mine)))

    def set_quota(
        self, tenant: str, *, quota_bytes: int | None, quota_versions: int | None, principal: Principal
    ) -> Usage:
        """Set both quotas; None is no limit. What is there already stays, even where it is more.

        Raises NotFoundError, InvalidValueError, PermissionDeniedError.
        """
        principal.require_operator(action="set the quota of", subject=tenant)
        _check("bytes", quota_bytes, QUOTA_BYTES_LIMIT)
        _check("versions", quota_versions, QUOTA_VERSIONS_LIMIT)
        with self._database.writing() as session:
            row = find_tenant(session, tenant, lock=True)
            row.quota_bytes, row.quota_versions = quota_bytes, quota_versions
            audit.record(
                session,
                at=datetime.now(UTC),
                actor=principal.actor,
                action="set_quota",
                subject=tenant,
                tenant=tenant,
                quota_bytes=quota_bytes,
                quota_versions=quota_versions,
            )
            return _to_usage(row)

    def usage(self, tenant: str, *, principal: Principal) -> Usage:
        """What a tenant has and may have. Raises NotFoundError, PermissionDeniedError."""
        principal.require_tenant(Role.READER, tenant, action="see the usage of")
        with self._database.reading() as session:
            return _to_usage(find_tenant(session, tenant))

    def check_integrity(self) -> None:
        """Count again what every tenant has. Raises StorageError with the first counter that is wrong."""
        with self._database.reading() as session:
            for row in session.scalars(select(TenantRow).order_by(TenantRow.name)).all():
                counted = count(session, row)
                if counted != (row.used_bytes, row.used_versions):
                    raise StorageError(
                        f"Tenant {row.name!r} is said to have {row.used_bytes} bytes and {row.used_versions} versions; "
                        f"counted are {counted[0]} and {counted[1]}. Correct it with `loraplex fsck --repair`."
                    )

    def recount(self) -> list[str]:
        """Correct the counters that are wrong; returns the names of their tenants."""
        corrected = []
        with self._database.writing() as session:
            for row in session.scalars(select(TenantRow).order_by(TenantRow.id).with_for_update()).all():
                counted = count(session, row)
                if counted != (row.used_bytes, row.used_versions):
                    row.used_bytes, row.used_versions = counted
                    corrected.append(row.name)
        return corrected


def _reserve(
    session: Session, tenant: TenantRow, asked: dict[str, int], now: datetime, until: datetime
) -> frozenset[str]:
    """Charge what the tenant has not got yet; a size that was only announced is corrected by the later one."""
    rows = blob_rows(session, tenant, asked)
    new = asked.keys() - rows.keys()
    more = sum(asked[sha256] for sha256 in new)
    for sha256, row in rows.items():  # leased before room is made, which forgets what has run out
        _lease(row, until)
        if not row.is_stored:
            more += asked[sha256] - row.size
            row.size = asked[sha256]
    charge_bytes(session, tenant, more, now)
    session.add_all(
        TenantBlobRow(
            tenant_id=tenant.id, sha256=sha256, size=asked[sha256], leased_until=until, created_at=now, is_stored=False
        )
        for sha256 in sorted(new)
    )
    return frozenset(new)


def _lease(row: TenantBlobRow, until: datetime) -> None:
    row.leased_until = until if row.leased_until is None else max(until, row.leased_until)


def _to_usage(row: TenantRow) -> Usage:
    return Usage(row.name, row.used_bytes, row.quota_bytes, row.used_versions, row.quota_versions)


def _check(field: str, value: int | None, limit: int) -> None:
    if value is not None and not 0 <= value <= limit:
        raise InvalidValueError(field, f"it is not between 0 and {limit}")
