"""Mirrors that follow their upstream by themselves: each at its own pace, slower and slower while it fails.

What comes in is judged as always. The upstream is asked without a token, as none is kept. A failure stays with the
mirror until it is looked at with success again; it never touches the versions that are there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import audit
from registry.database import Database
from registry.errors import InvalidValueError, RegistryError
from registry.mirror import Mirror
from registry.mirrors import MIRROR_ACTOR, Mirrors, mirror_row, to_mirror
from registry.models import AdapterRow, MirrorRow, TenantRow
from registry.names import AdapterName
from registry.principal import Principal, Role

SHORTEST_SECONDS, LONGEST_SECONDS = 60, 366 * 86_400
LONGEST_PAUSE = timedelta(hours=24)
FAILURE_CHARACTERS = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MirrorRound:
    """How many mirrors were looked at, and what came of it."""

    pulled: int = 0
    unchanged: int = 0
    failed: int = 0


class MirrorSchedule:
    """When mirrors are looked at. Holds no state but the database."""

    def __init__(self, database: Database, mirrors: Mirrors) -> None:
        self._database = database
        self._mirrors = mirrors

    def follow(self, name: AdapterName, every: timedelta | None, principal: Principal) -> Mirror:
        """Look at the mirror's upstream so often; None is never by itself. Only the operator may.

        Raises NotFoundError, PermissionDeniedError, InvalidValueError.
        """
        principal.require_operator(action="schedule the mirror of", subject=str(name))
        seconds = None if every is None else round(every.total_seconds())
        if seconds is not None and not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
            raise InvalidValueError("every", f"it is not between {SHORTEST_SECONDS} seconds and a year")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row = mirror_row(session, name, principal, lock=True)
            row.every_seconds = seconds
            row.next_sync_at = None if seconds is None else now + timedelta(seconds=seconds)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="follow_mirror",
                subject=str(name),
                every_seconds=seconds,
            )
            return to_mirror(str(name), row)

    def next_due(self) -> datetime | None:
        """When the next mirror is to be looked at; None where none follows by itself."""
        with self._database.reading() as session:
            return session.scalar(select(func.min(MirrorRow.next_sync_at)))

    def run(self, now: datetime) -> MirrorRound:
        """Look at every mirror that is due."""
        pulled = unchanged = failed = 0
        for name in self._due(now):
            principal = Principal(tenant=name.tenant, role=Role.PUBLISHER, token_id=MIRROR_ACTOR)
            try:
                done = self._mirrors.sync(name, principal=principal)
            except RegistryError as error:
                failed += 1
                logger.warning("mirror %s: %s", name, error)
                self._conclude(name, failure=error.message)
                continue
            pulled, unchanged = pulled + (done.publication is not None), unchanged + (done.publication is None)
            if done.publication is not None:
                logger.info("mirror %s: version %d", name, done.publication.version.number)
            self._conclude(name, failure=None)
        return MirrorRound(pulled, unchanged, failed)

    def _due(self, now: datetime) -> list[AdapterName]:
        with self._database.reading() as session:
            query = (
                select(TenantRow.name, AdapterRow.name)
                .join(AdapterRow, AdapterRow.tenant_id == TenantRow.id)
                .join(MirrorRow, MirrorRow.adapter_id == AdapterRow.id)
                .where(MirrorRow.next_sync_at <= now)
                .order_by(MirrorRow.next_sync_at)
            )
            return [AdapterName(tenant, name) for tenant, name in session.execute(query)]

    def _conclude(self, name: AdapterName, *, failure: str | None) -> None:
        """Write down what came of it, and when to look again. A mirror that is gone needs nothing."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row = _row(session, name)
            if row is None or row.every_seconds is None:
                return
            every = timedelta(seconds=row.every_seconds)
            row.failures = 0 if failure is None else row.failures + 1
            row.failure = None if failure is None else failure[:FAILURE_CHARACTERS]
            row.checked_at = now
            backed_off = min(every * 2 ** min(row.failures, 20), max(every, LONGEST_PAUSE))
            row.next_sync_at = now + (every if failure is None else backed_off)


def _row(session: Session, name: AdapterName) -> MirrorRow | None:
    query = (
        select(MirrorRow)
        .join(AdapterRow, AdapterRow.id == MirrorRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(TenantRow.name == name.tenant, AdapterRow.name == name.name)
    )
    return session.scalar(query.with_for_update(of=MirrorRow))
