"""What a tenant has, counted in the database: blobs with their bytes, and versions.

Each blob counts once per tenant, with a row in `tenant_blobs`; `tenants.used_bytes` is the sum over these rows, and
`tenants.used_versions` the number of its versions. These functions work inside the caller's transaction, under the lock
of the tenant's row (`locked_tenant`). `quotas.py` makes transactions of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import audit
from registry.errors import ConflictError, QuotaExceededError
from registry.models import (
    AdapterRow,
    CommitFileRow,
    CommitRow,
    TenantBlobRow,
    TenantRow,
    VersionFileRow,
    VersionRow,
)
from registry.principal import Principal
from registry.tenant_rows import missing_tenant

DIGESTS_PER_QUERY = 500
"""Databases bound the number of parameters of a statement."""


def locked_tenant(session: Session, name: str, principal: Principal, now: datetime) -> TenantRow:
    """The tenant's row, locked: its writers follow one another. The operator makes a tenant that is not there.

    Raises NotFoundError.
    """
    row = session.scalar(select(TenantRow).where(TenantRow.name == name).with_for_update())
    if row is not None:
        return row
    if not principal.is_operator:
        raise missing_tenant(name)
    row = TenantRow(name=name, created_at=now, used_bytes=0, used_versions=0, policy="{}")
    session.add(row)
    session.flush()
    audit.record(session, at=now, actor=principal.actor, action="create_tenant", subject=name, tenant=name)
    return row


def claim(session: Session, tenant: TenantRow, digests: Iterable[str]) -> None:
    """A version or commit is about to refer to these blobs, in this transaction.

    Raises ConflictError where one is not stored for this tenant: never uploaded, or forgotten since.
    """
    asked = sorted(set(digests))
    rows = blob_rows(session, tenant, asked)
    for sha256 in asked:
        if sha256 not in rows or not rows[sha256].is_stored:
            raise unreserved(sha256)


def charge_version(session: Session, tenant: TenantRow) -> None:
    """Count one more version. Raises QuotaExceededError."""
    quota = tenant.quota_versions
    if quota is not None and tenant.used_versions + 1 > quota:
        raise QuotaExceededError(tenant.name, "versions", quota=quota, used=tenant.used_versions, asked=1)
    tenant.used_versions += 1


def charge_bytes(session: Session, tenant: TenantRow, more: int, now: datetime) -> None:
    """Count more bytes. Where they do not fit, reservations that have run out make room. Raises QuotaExceededError."""
    quota = tenant.quota_bytes
    if quota is not None and more > 0 and tenant.used_bytes + more > quota:
        _forget_expired_reservations(session, tenant, now)
        if tenant.used_bytes + more > quota:
            raise QuotaExceededError(tenant.name, "bytes", quota=quota, used=tenant.used_bytes, asked=more)
    tenant.used_bytes += more


def forget(session: Session, tenant: TenantRow, digests: Sequence[str]) -> int:
    """The tenant has these blobs no more; returns the bytes that are free by it."""
    session.flush()
    freed = 0
    for part in _parts(digests):
        chosen = (TenantBlobRow.tenant_id == tenant.id, TenantBlobRow.sha256.in_(part))
        freed += int(session.scalar(select(func.coalesce(func.sum(TenantBlobRow.size), 0)).where(*chosen)) or 0)
        session.execute(delete(TenantBlobRow).where(*chosen))
    tenant.used_bytes -= freed
    return freed


def blob_rows(session: Session, tenant: TenantRow, digests: Iterable[str]) -> dict[str, TenantBlobRow]:
    """The tenant's rows of these blobs, by digest."""
    rows: dict[str, TenantBlobRow] = {}
    for part in _parts(sorted(set(digests))):
        query = select(TenantBlobRow).where(TenantBlobRow.tenant_id == tenant.id, TenantBlobRow.sha256.in_(part))
        rows |= {row.sha256: row for row in session.scalars(query)}
    return rows


def referenced(session: Session, tenant: TenantRow, digests: Iterable[str]) -> frozenset[str]:
    """Those of these blobs that a version or commit of the tenant refers to."""
    found: set[str] = set()
    for part in _parts(sorted(set(digests))):
        versions = (
            select(VersionFileRow.sha256)
            .join(VersionRow, VersionRow.id == VersionFileRow.version_id)
            .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
            .where(AdapterRow.tenant_id == tenant.id, VersionFileRow.sha256.in_(part))
        )
        commits = (
            select(CommitFileRow.sha256)
            .join(CommitRow, CommitRow.id == CommitFileRow.commit_id)
            .join(AdapterRow, AdapterRow.id == CommitRow.adapter_id)
            .where(AdapterRow.tenant_id == tenant.id, CommitFileRow.sha256.in_(part))
        )
        found.update(session.scalars(versions))
        found.update(session.scalars(commits))
    return frozenset(found)


def count(session: Session, tenant: TenantRow) -> tuple[int, int]:
    """Bytes and versions of the tenant, counted anew."""
    blobs = select(func.coalesce(func.sum(TenantBlobRow.size), 0)).where(TenantBlobRow.tenant_id == tenant.id)
    versions = (
        select(func.count(VersionRow.id))
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .where(AdapterRow.tenant_id == tenant.id)
    )
    return int(session.scalar(blobs) or 0), int(session.scalar(versions) or 0)


def unreserved(sha256: str) -> ConflictError:
    """The error for a blob that the tenant does not have."""
    return ConflictError(
        f"Blob {sha256} is not among what this tenant uploaded, or its upload has run out. Upload it again."
    )


def _forget_expired_reservations(session: Session, tenant: TenantRow, now: datetime) -> None:
    query = select(TenantBlobRow.sha256).where(
        TenantBlobRow.tenant_id == tenant.id, TenantBlobRow.is_stored.is_(False), TenantBlobRow.leased_until < now
    )
    forget(session, tenant, list(session.scalars(query)))


def _parts(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(digests), DIGESTS_PER_QUERY):
        yield digests[start : start + DIGESTS_PER_QUERY]
