"""Events and webhooks of a registry in process."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from registry.database import Database
from registry.event import PAGE_EVENTS, EventPage
from registry.events import Feed
from registry.outbound import OutboundPolicy
from registry.principal import OPERATOR, Principal
from registry.webhook import Delivery, IssuedWebhook, Webhook
from registry.webhooks import Webhooks


class LocalEvents:
    """A part of `Registry`: what happened, and who is told."""

    def __init__(self, database: Database, webhooks: Webhooks) -> None:
        self._feed = Feed(database)
        self._webhooks = webhooks

    def events(
        self,
        principal: Principal,
        *,
        after: int | None = None,
        limit: int = PAGE_EVENTS,
        kinds: Collection[str] | None = None,
        seconds: float = 0.0,
    ) -> EventPage:
        """What happened after the cursor, waiting up to `seconds` for something; `after` None begins now."""
        return self._feed.read(principal, after=after, limit=limit, kinds=kinds, seconds=seconds)

    def newest_event(self) -> int:
        """The number of the newest event of anybody."""
        return self._feed.newest()

    def create_webhook(
        self, tenant: str, url: str, *, principal: Principal, kinds: Sequence[str] | None = None
    ) -> IssuedWebhook:
        """Tell this address of the tenant's events; the secret that signs them is in the result and not shown again."""
        return self._webhooks.create(tenant, url, kinds=kinds, principal=principal)

    def list_webhooks(self, tenant: str, principal: Principal) -> list[Webhook]:
        """A tenant's webhooks, without their secrets."""
        return self._webhooks.all(tenant, principal)

    def delete_webhook(self, webhook_id: str, principal: Principal) -> Webhook:
        """Remove a webhook with its deliveries."""
        return self._webhooks.delete(webhook_id, principal)

    def webhook_deliveries(self, webhook_id: str, principal: Principal) -> list[Delivery]:
        """The newest deliveries of a webhook, and what became of them."""
        return self._webhooks.deliveries(webhook_id, principal)

    def replay_webhook(self, webhook_id: str, *, principal: Principal, after: int | None = None) -> int:
        """Deliver again what was given up, or every event after this number; enables the webhook."""
        return self._webhooks.replay(webhook_id, after=after, principal=principal)

    def test_webhook(self, webhook_id: str, principal: Principal) -> Delivery:
        """Send an event of kind `webhook.test` to this webhook alone."""
        return self._webhooks.test(webhook_id, principal)

    def webhook_policy(self, *, principal: Principal = OPERATOR) -> OutboundPolicy:
        """What webhooks may reach beyond public addresses over https."""
        return self._webhooks.shown_policy(principal)

    def set_webhook_policy(self, policy: OutboundPolicy, principal: Principal) -> OutboundPolicy:
        """Allow webhooks to reach more. Only the operator may."""
        return self._webhooks.set_policy(policy, principal)
