"""Takes old events out of the feed, with the deliveries that told webhooks of them.

An event stays while a delivery of it, or of one before it, still waits; the newest one always stays, so that no number
means two things. Up to which number events are gone is written down: who asks for what is gone is told so.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import locks
from registry.database import Database
from registry.events import PRUNED_KEY
from registry.models import DeliveryRow, EventRow, MetaRow

EVENTS_AT_ONCE = 5_000
"""Events of one transaction: other writers wait meanwhile."""


def prune_events(database: Database, *, before: datetime) -> int:
    """Take out the events that happened before a moment, as far as nothing waits for them; returns how many."""
    count = 0
    while True:
        with database.writing() as session:
            taken = _prune_some(session, before)
        count += taken
        if taken < EVENTS_AT_ONCE:
            return count


def _prune_some(session: Session, before: datetime) -> int:
    locks.hold(session, locks.Lock.EVENTS)
    newest = session.scalar(select(func.max(EventRow.id))) or 0
    awaited = session.scalar(select(func.min(DeliveryRow.event_id)).where(DeliveryRow.due_at.is_not(None)))
    end = newest if awaited is None else min(newest, awaited)
    query = select(EventRow.id, EventRow.at).where(EventRow.id < end).order_by(EventRow.id).limit(EVENTS_AT_ONCE)
    through, count = 0, 0
    for event_id, at in session.execute(query):
        if at >= before:
            break
        through, count = event_id, count + 1
    if count:
        session.execute(delete(DeliveryRow).where(DeliveryRow.event_id <= through))
        session.execute(delete(EventRow).where(EventRow.id <= through))
        session.merge(MetaRow(key=PRUNED_KEY, value=str(through)))
        session.flush()
    return count
