"""What was deleted or moved away: a name is not used again for a year, and a version's number never.

A name that is free again soon could be taken by somebody whom the name's users do not know. A row with number 0 is the
adapter itself; the others are its versions. They work inside the caller's transaction, under the tenant's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from registry.errors import ConflictError
from registry.lookup import is_readable
from registry.models import AdapterRow, TenantRow, TombstoneRow
from registry.names import AdapterName
from registry.principal import Principal

ADAPTER_ITSELF = 0
NAME_REST = timedelta(days=365)


def bury_versions(
    session: Session,
    tenant_id: int,
    name: AdapterName,
    versions: Iterable[tuple[int, str]],
    *,
    actor: str,
    at: datetime,
) -> None:
    """Keep that these versions, given as (number, digest), were there."""
    rows = [
        {
            "tenant_id": tenant_id,
            "name": name.name,
            "number": number,
            "digest": digest,
            "actor": actor,
            "deleted_at": at,
            "reusable_at": None,
        }
        for number, digest in versions
    ]
    if rows:
        session.execute(insert(TombstoneRow), rows)


def bury_name(
    session: Session,
    tenant_id: int,
    name: AdapterName,
    *,
    actor: str,
    at: datetime,
    moved_to: AdapterName | None = None,
) -> None:
    """Keep the adapter's name from being used for a year, and say where it was moved to."""
    row = TombstoneRow(
        tenant_id=tenant_id,
        name=name.name,
        number=ADAPTER_ITSELF,
        digest=None,
        moved_to=None if moved_to is None else str(moved_to),
        actor=actor,
        deleted_at=at,
        reusable_at=at + NAME_REST,
    )
    session.merge(row)
    session.flush()


def check_free(session: Session, tenant_id: int, name: AdapterName, now: datetime) -> int:
    """Raises ConflictError while the name rests; else the last number that a version of this name ever had."""
    row = _of_name(session, tenant_id, name)
    if row is not None and row.reusable_at is not None and row.reusable_at > now:
        what = "was deleted" if row.moved_to is None else f"was moved to {row.moved_to!r}"
        raise ConflictError(
            f"{str(name)!r} {what} on {row.deleted_at:%Y-%m-%d}. Its name rests until {row.reusable_at:%Y-%m-%d}, so "
            "that nobody is taken for somebody else: choose another."
        )
    return _last_number(session, tenant_id, name)


def move(session: Session, tenant_id: int, old: AdapterName, new: AdapterName, *, actor: str, now: datetime) -> None:
    """An adapter is about to have another name; its deleted versions follow it. Raises ConflictError.

    It may go back to a name that it left.
    """
    row = _of_name(session, tenant_id, new)
    is_return = row is not None and row.moved_to == str(old)
    if not is_return and check_free(session, tenant_id, new, now):
        raise ConflictError(f"{str(new)!r} had versions before, whose numbers would mean two things. Choose another.")
    session.execute(delete(TombstoneRow).where(TombstoneRow.tenant_id == tenant_id, TombstoneRow.name == new.name))
    buried = (TombstoneRow.tenant_id == tenant_id, TombstoneRow.name == old.name, TombstoneRow.number != ADAPTER_ITSELF)
    session.execute(update(TombstoneRow).where(*buried).values(name=new.name))
    bury_name(session, tenant_id, old, actor=actor, at=now, moved_to=new)


def find_moved(session: Session, name: AdapterName, principal: Principal) -> AdapterName | None:
    """Where the adapter of this name went, if it was renamed and the caller may read it there."""
    query = (
        select(TombstoneRow.moved_to)
        .join(TenantRow, TenantRow.id == TombstoneRow.tenant_id)
        .where(TenantRow.name == name.tenant, TombstoneRow.name == name.name, TombstoneRow.number == ADAPTER_ITSELF)
    )
    moved_to = session.scalar(query)
    if moved_to is None:
        return None
    new = AdapterName.parse(moved_to)
    readable = (
        select(AdapterRow.id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(TenantRow.name == new.tenant, AdapterRow.name == new.name, is_readable(principal))
    )
    return None if session.scalar(readable) is None else new


def forget_rested(session: Session, now: datetime) -> int:
    """Take away the tombstones of names that may be used again; returns how many.

    A renamed adapter is then no longer found by its old name. Tombstones of versions stay for ever.
    """
    rested = (TombstoneRow.number == ADAPTER_ITSELF, TombstoneRow.reusable_at <= now)
    count = session.scalar(select(func.count()).select_from(TombstoneRow).where(*rested)) or 0
    if count:
        session.execute(delete(TombstoneRow).where(*rested).execution_options(synchronize_session=False))
    return count


def _of_name(session: Session, tenant_id: int, name: AdapterName) -> TombstoneRow | None:
    return session.get(TombstoneRow, (tenant_id, name.name, ADAPTER_ITSELF))


def _last_number(session: Session, tenant_id: int, name: AdapterName) -> int:
    chosen = (TombstoneRow.tenant_id == tenant_id, TombstoneRow.name == name.name)
    return session.scalar(select(func.max(TombstoneRow.number)).where(*chosen)) or 0
