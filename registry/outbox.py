"""The outbox: which event still has to be told to which webhook. No network here; see `courier.py`.

A delivery is written with its event, in the event's transaction: an event that happened is told at least once, an
event that did not happen is never told. A worker claims deliveries by moving their next attempt into the future, in a
transaction of its own; if it dies, the claim runs out and the delivery is claimed again.

    due_at set                          waits for an attempt at that time
    due_at None, delivered_at set       arrived
    due_at None, delivered_at None      given up; `failure` says why, and a replay queues it again
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.database import Database
from registry.models import DeliveryRow, EventRow, TenantRow, WebhookRow

FAILURE_CHARACTERS = 500


@dataclass(frozen=True)
class Claim:
    """A delivery that is the claimer's for a while, with all that is needed to make it. The secret is not shown."""

    delivery_id: int
    webhook_id: str
    url: str
    secret: str
    attempts: int
    event_id: int
    at: datetime
    kind: str
    adapter: str
    document: str

    def __repr__(self) -> str:
        return f"Claim({self.delivery_id}, {self.webhook_id}, attempt {self.attempts})"


def queue(session: Session, events: Sequence[EventRow]) -> None:
    """Write the deliveries of events that have their numbers, in their transaction."""
    tenants = {row.tenant for row in events if row.tenant}
    if not tenants:
        return
    query = (
        select(WebhookRow.id, WebhookRow.kinds, TenantRow.name)
        .join(TenantRow, TenantRow.id == WebhookRow.tenant_id)
        .where(TenantRow.name.in_(tenants), WebhookRow.disabled_at.is_(None))
    )
    for webhook_id, kinds, tenant in session.execute(query).all():
        wanted = None if kinds is None else json.loads(kinds)
        session.add_all(
            DeliveryRow(webhook_id=webhook_id, event_id=row.id, attempts=0, due_at=row.at)
            for row in events
            if row.tenant == tenant and (wanted is None or row.kind in wanted)
        )


class Outbox:
    """Deliveries in the database. One method is one transaction; threads and processes may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next_due(self, *, except_for: Collection[str] = ()) -> datetime | None:
        """When the next attempt is to be made, to none of these webhooks; None where nothing waits."""
        with self._database.reading() as session:
            query = select(func.min(DeliveryRow.due_at))
            return session.scalar(query.where(DeliveryRow.webhook_id.not_in(list(except_for))))

    def claim(self, now: datetime, *, seconds: float, limit: int, except_for: Collection[str] = ()) -> list[Claim]:
        """Take what is due, one delivery of each webhook: nobody else gets it for `seconds`. It counts as an attempt.

        A webhook of which another process has a delivery under way may be given a second one.
        """
        with self._database.writing() as session:
            first = (
                select(func.min(DeliveryRow.id))
                .where(DeliveryRow.due_at <= now, DeliveryRow.webhook_id.not_in(list(except_for)))
                .group_by(DeliveryRow.webhook_id)
                .order_by(func.min(DeliveryRow.due_at))
                .limit(limit)
            )
            ids = list(session.scalars(first))
            query = select(DeliveryRow).where(DeliveryRow.id.in_(ids), DeliveryRow.due_at <= now)
            claims = []
            for row in session.scalars(query.order_by(DeliveryRow.id).with_for_update(skip_locked=True)):
                row.attempts += 1
                row.due_at = now + timedelta(seconds=seconds)
                webhook = session.get_one(WebhookRow, row.webhook_id)
                claims.append(_to_claim(row, webhook, session.get_one(EventRow, row.event_id)))
            return claims

    def arrived(self, claim: Claim, now: datetime, status: int) -> None:
        """The other side has taken it."""
        with self._database.writing() as session:
            row = _claimed(session, claim)
            if row is not None:
                row.due_at, row.delivered_at, row.status, row.failure = None, now, status, None

    def failed(self, claim: Claim, *, status: int | None, failure: str, next_at: datetime | None) -> None:
        """The other side has not taken it: try again at `next_at`, or never."""
        with self._database.writing() as session:
            row = _claimed(session, claim)
            if row is not None:
                row.due_at, row.status, row.failure = next_at, status, failure[:FAILURE_CHARACTERS]

    def give_up(self, claim: Claim, now: datetime, *, status: int | None, failure: str, is_gone: bool) -> None:
        """No further attempt. The webhook is disabled if it `is_gone`, or took nothing since this event happened."""
        with self._database.writing() as session:
            webhook = session.get(WebhookRow, claim.webhook_id, with_for_update=True)  # before its deliveries, always
            row = _claimed(session, claim)
            if row is None or webhook is None:
                return
            row.due_at, row.status, row.failure = None, status, failure[:FAILURE_CHARACTERS]
            took = select(DeliveryRow.id).where(
                DeliveryRow.webhook_id == claim.webhook_id, DeliveryRow.delivered_at >= claim.at
            )
            if is_gone or session.scalar(took.limit(1)) is None:
                _disable(session, webhook, now)


def _disable(session: Session, webhook: WebhookRow, now: datetime) -> None:
    webhook.disabled_at = webhook.disabled_at or now
    waiting = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook.id, DeliveryRow.due_at.is_not(None))
    for row in session.scalars(waiting.with_for_update()):
        row.due_at = None
        row.failure = row.failure or "the webhook was disabled before this was tried"


def _claimed(session: Session, claim: Claim) -> DeliveryRow | None:
    """The row, if it is still this claimer's: another worker may have taken it over, or the webhook is deleted."""
    row = session.get(DeliveryRow, claim.delivery_id, with_for_update=True)
    return row if row is not None and row.attempts == claim.attempts else None


def _to_claim(row: DeliveryRow, webhook: WebhookRow, happened: EventRow) -> Claim:
    return Claim(
        delivery_id=row.id,
        webhook_id=webhook.id,
        url=webhook.url,
        secret=webhook.secret,
        attempts=row.attempts,
        event_id=happened.id,
        at=happened.at,
        kind=happened.kind,
        adapter=happened.adapter,
        document=happened.document,
    )
