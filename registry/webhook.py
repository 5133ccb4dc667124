"""A webhook and its deliveries, as they are shown. What keeps them is in `webhooks.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Webhook:
    """What is kept of a webhook, but its secret. `kinds` None is every kind of event."""

    webhook_id: str
    tenant: str
    url: str
    kinds: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True)
class IssuedWebhook(Webhook):
    """A webhook just made. Its secret is not in its repr, and is not shown again."""

    secret: str = field(repr=False)


@dataclass(frozen=True)
class Delivery:
    """One event on its way to a webhook: waiting (`due_at`), arrived (`delivered_at`), or given up (neither)."""

    delivery_id: int
    event_id: int
    kind: str
    attempts: int
    due_at: datetime | None
    delivered_at: datetime | None
    status: int | None
    failure: str | None
