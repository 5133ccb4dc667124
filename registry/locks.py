"""Named locks over the whole registry, held until the transaction ends.

On SQLite a write transaction excludes every other one, so there is nothing to do. On PostgreSQL these are advisory
locks.
"""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy import func, select
from sqlalchemy.orm import Session


class Lock(IntEnum):
    """What can be locked; the numbers are PostgreSQL's keys and never change.

    Taken in this order, after the rows of tenants and adapters: SWEEP, AUDIT, EVENTS.
    """

    SWEEP = 0x4C50_0001
    """Shared by whoever reserves room for blobs; held alone by garbage collection while it deletes blobs."""
    AUDIT = 0x4C50_0002
    """Held by whoever appends to the audit log's chain."""
    EVENTS = 0x4C50_0003
    """Held while a transaction writes its events, as its last step: their numbers grow in the order of commits."""
    UPKEEP = 0x4C50_0004
    """Held while a task of the upkeep changes hands, in a transaction that locks nothing else."""


def hold(session: Session, lock: Lock, *, shared: bool = False) -> None:
    """Wait for the lock, and keep it until the transaction ends."""
    if session.get_bind().dialect.name != "postgresql":
        return
    take = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
    session.execute(select(take(int(lock))))
