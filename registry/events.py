"""The feed of what happened: each event is written in the transaction of its change, and read in the order of commits.

Events are kept aside until their transaction commits and are written as its last step, one transaction at a time. So
their numbers grow in the order of commits on PostgreSQL too, where a number that is drawn early may become visible
late: a reader who has seen event 7 will never be shown event 6 afterwards. The same step queues the deliveries to
webhooks (`outbox.py`).

A reader keeps a cursor, the number up to which it has seen everything. What the caller may not read is filtered in
the query; an event is public for ever if its adapter was public when it happened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, event, func, or_, select, true
from sqlalchemy.orm import Session

from registry import locks, outbox
from registry.database import Database
from registry.errors import InvalidValueError
from registry.event import PAGE_EVENTS, Event, EventPage
from registry.locks import Lock
from registry.models import EventRow, MetaRow
from registry.principal import Principal
from registry.scope import ESCAPE

PAGE_EVENTS_LIMIT = 1000
WAIT_SECONDS_LIMIT = 45.0
POLL_SECONDS = 0.1
PRUNED_KEY = "events_pruned"
"""In `registry_meta`: up to which number events were taken out (`event_pruning.py`)."""
_PENDING = "loraplex_events"


def record(
    session: Session,
    *,
    at: datetime,
    kind: str,
    tenant: str,
    adapter: str,
    is_public: bool,
    document: Mapping[str, Any],
) -> None:
    """Add an event to the transaction. `adapter` is `tenant/name`; nothing secret may be in the document."""
    assert not session.in_nested_transaction(), "a savepoint that is undone would leave its events"
    if _PENDING not in session.info:
        session.info[_PENDING] = []
        event.listen(session, "before_commit", _write_pending)
    session.info[_PENDING].append(
        EventRow(
            at=at,
            kind=kind,
            tenant=tenant,
            adapter=adapter,
            is_public=is_public,
            document=json.dumps(document, sort_keys=True),
        )
    )


class Feed:
    """The events as a caller may see them. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> int:
        """The number of the newest event of anybody; 0 where there is none."""
        with self._database.reading() as session:
            return _newest(session)

    def read(
        self,
        principal: Principal,
        *,
        after: int | None = None,
        limit: int = PAGE_EVENTS,
        kinds: Collection[str] | None = None,
        seconds: float = 0.0,
    ) -> EventPage:
        """The events after the cursor. None begins now: an empty page with a cursor. Raises InvalidValueError.

        Waits until there is something to see, at most `seconds` (it blocks its thread meanwhile).
        """
        _check("after", after or 0, lowest=0, highest=2**53)
        _check("limit", limit, lowest=1, highest=PAGE_EVENTS_LIMIT)
        _check("seconds", seconds, lowest=0, highest=WAIT_SECONDS_LIMIT)
        deadline = time.monotonic() + seconds
        while True:
            page = self._read_now(principal, after, limit, kinds)
            left = deadline - time.monotonic()
            if page.events or left <= 0 or not page.is_complete:
                return page
            after = page.cursor
            time.sleep(min(POLL_SECONDS, left))

    def _read_now(
        self, principal: Principal, after: int | None, limit: int, kinds: Collection[str] | None
    ) -> EventPage:
        with self._database.reading() as session:
            newest = _newest(session)
            if after is None or after >= newest:  # later than the newest: the registry was restored from a backup
                return EventPage((), newest)
            query = select(EventRow).where(EventRow.id > after, EventRow.id <= newest, _is_readable(principal))
            if kinds is not None:
                query = query.where(EventRow.kind.in_(kinds))
            found = tuple(_to_event(row) for row in session.scalars(query.order_by(EventRow.id).limit(limit)))
            return EventPage(found, found[-1].id if len(found) == limit else newest, after >= _pruned(session))


def _write_pending(session: Session) -> None:
    """The last step of a transaction with events: nothing is locked after the order, so that nobody waits in a ring."""
    pending = session.info[_PENDING]
    if not pending or session.in_nested_transaction():
        return
    session.flush()
    locks.hold(session, Lock.EVENTS)
    session.add_all(pending)
    session.flush()
    outbox.queue(session, pending)
    pending.clear()


def _newest(session: Session) -> int:
    return session.scalar(select(func.max(EventRow.id))) or 0


def _pruned(session: Session) -> int:
    value = session.scalar(select(MetaRow.value).where(MetaRow.key == PRUNED_KEY))
    return 0 if value is None else int(value)


def _is_readable(principal: Principal) -> ColumnElement[bool]:
    if principal.is_operator:
        return true()
    own = [EventRow.tenant == principal.tenant]
    if principal.scope is not None:
        likes = [f"{principal.tenant}/{like}" for like in principal.scope.like_patterns()]
        own.append(or_(*(EventRow.adapter.like(like, escape=ESCAPE) for like in likes)))
    return or_(EventRow.is_public, and_(*own))


def _check(field: str, value: float, *, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise InvalidValueError(field, f"it is not between {lowest:g} and {highest:g}")


def _to_event(row: EventRow) -> Event:
    return Event(
        id=row.id,
        at=row.at,
        kind=row.kind,
        tenant=row.tenant,
        adapter=row.adapter,
        is_public=row.is_public,
        document=json.loads(row.document),
    )
