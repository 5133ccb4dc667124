"""Leases and pins: what keeps a version from being deleted while no alias points at it.

A server leases the versions that it has loaded, for minutes, and again while it has them. If it dies, its leases run
out. A pin is somebody's word that a version stays, with the reason; it holds until it is taken back. One method is one
transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import audit
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import InvalidNameError, InvalidValueError, NotFoundError
from registry.lease import Lease, Pin
from registry.lookup import find_adapter, find_version
from registry.models import AdapterRow, LeaseRow, PinRow, TenantRow, VersionRow
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal, Role

HOLDER_CHARACTERS = 100
REASON_CHARACTERS = 1_000
LEASE_LIMIT = timedelta(hours=24)
VERSIONS_LIMIT = 1_000
"""Versions of one call: other writers wait meanwhile."""
HOLDERS_LIMIT = 1_000
"""Holders of one version: more are not needed to keep it."""


class Leases:
    """Leases and pins. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lease(
        self, refs: Sequence[AdapterRef], *, holder: str, duration: timedelta, principal: Principal
    ) -> list[AdapterRef]:
        """Lease versions from now on; returns those that are leased now.

        What is gone is left out, and what the caller may read that is not its tenant's: nobody keeps others from
        deleting. Raises InvalidValueError.
        """
        check_text("holder", holder, limit_characters=HOLDER_CHARACTERS)
        if not timedelta(0) < duration <= LEASE_LIMIT:
            raise InvalidValueError("duration", f"it is not between 0 and {LEASE_LIMIT.total_seconds():.0f} seconds")
        if len(refs) > VERSIONS_LIMIT:
            raise InvalidValueError("versions", f"there are more than {VERSIONS_LIMIT:,}")
        now = datetime.now(UTC)
        leased = []
        with self._database.writing() as session:
            forget_expired(session, now)
            for ref in refs:
                version = _own_version(session, ref, principal)
                if version is not None:
                    _lease(session, version, holder, now + duration)
                    leased.append(ref)
        return leased

    def release(self, holder: str, principal: Principal) -> int:
        """End the holder's leases on what is the caller's; returns how many there were."""
        with self._database.writing() as session:
            query = (
                select(LeaseRow, TenantRow.name, AdapterRow.name)
                .join(VersionRow, VersionRow.id == LeaseRow.version_id)
                .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
                .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
                .where(LeaseRow.holder == holder)
            )
            rows = session.execute(query).all()
            mine = [row for row, tenant, adapter in rows if principal.covers(AdapterName(tenant, adapter))]
            for row in mine:
                session.delete(row)
        return len(mine)

    def leases(self, name: AdapterName, principal: Principal) -> list[Lease]:
        """Who uses which version of an adapter now. Raises NotFoundError, PermissionDeniedError."""
        now = datetime.now(UTC)
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            principal.require(Role.READER, name, action="see the leases of")
            query = (
                select(LeaseRow, VersionRow.number)
                .join(VersionRow, VersionRow.id == LeaseRow.version_id)
                .where(VersionRow.adapter_id == adapter.id, LeaseRow.expires_at > now)
                .order_by(VersionRow.number, LeaseRow.holder)
            )
            return [Lease(str(name), number, row.holder, row.expires_at) for row, number in session.execute(query)]

    def pin(self, ref: AdapterRef, *, reason: str, principal: Principal) -> Pin:
        """Keep a version; a new reason replaces the old one. Raises NotFoundError, PermissionDeniedError."""
        check_text("reason", reason, limit_characters=REASON_CHARACTERS)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            name, version = _version_to_pin(session, ref, principal, action="pin a version of")
            session.merge(PinRow(version_id=version.id, reason=reason, actor=principal.actor, created_at=now))
            subject = f"{name}@{version.number}"
            audit.record(session, at=now, actor=principal.actor, action="pin", subject=subject, reason=reason)
            return Pin(str(name), version.number, reason, principal.actor, now)

    def unpin(self, ref: AdapterRef, *, principal: Principal) -> Pin:
        """Keep a version no longer; returns the pin that was there. Raises NotFoundError, PermissionDeniedError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            name, version = _version_to_pin(session, ref, principal, action="unpin a version of")
            row = session.get(PinRow, version.id)
            if row is None:
                raise NotFoundError("pin", f"{name}@{version.number}", f"See its pins with `loraplex pins {name}`.")
            pin = Pin(str(name), version.number, row.reason, row.actor, row.created_at)
            session.delete(row)
            subject = f"{name}@{version.number}"
            audit.record(session, at=now, actor=principal.actor, action="unpin", subject=subject)
            return pin

    def pins(self, name: AdapterName, principal: Principal) -> list[Pin]:
        """The pins of an adapter's versions. Raises NotFoundError, PermissionDeniedError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            principal.require(Role.READER, name, action="see the pins of")
            query = (
                select(PinRow, VersionRow.number)
                .join(VersionRow, VersionRow.id == PinRow.version_id)
                .where(VersionRow.adapter_id == adapter.id)
                .order_by(VersionRow.number)
            )
            return [
                Pin(str(name), number, row.reason, row.actor, row.created_at) for row, number in session.execute(query)
            ]


def forget_expired(session: Session, now: datetime) -> None:
    """Take away leases that ran out."""
    session.execute(delete(LeaseRow).where(LeaseRow.expires_at <= now))


def _lease(session: Session, version: VersionRow, holder: str, until: datetime) -> None:
    row = session.get(LeaseRow, (version.id, holder))
    if row is not None:
        row.expires_at = until
        return
    holders = select(func.count()).select_from(LeaseRow).where(LeaseRow.version_id == version.id)
    if session.scalars(holders).one() < HOLDERS_LIMIT:
        session.add(LeaseRow(version_id=version.id, holder=holder, expires_at=until))
        session.flush()


def _own_version(session: Session, ref: AdapterRef, principal: Principal) -> VersionRow | None:
    if ref.adapter is None or ref.number is None:
        raise InvalidNameError("a version to lease", str(ref), "it is written TENANT/NAME@NUMBER")
    if not principal.covers(ref.adapter):
        return None
    try:
        return find_version(session, ref, principal)[0]
    except NotFoundError:
        return None


def _version_to_pin(
    session: Session, ref: AdapterRef, principal: Principal, *, action: str
) -> tuple[AdapterName, VersionRow]:
    if ref.adapter is None:
        raise InvalidNameError("a version to pin", str(ref), "name the adapter too, such as acme/text2sql@3")
    version, _, _ = find_version(session, ref, principal)
    principal.require(Role.PROMOTER, ref.adapter, action=action)
    return ref.adapter, version
