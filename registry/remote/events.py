"""Events and webhooks of a registry over HTTP."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from registry.event import PAGE_EVENTS, EventPage
from registry.names import parse_tenant
from registry.outbound import OutboundPolicy
from registry.principal import OPERATOR, Principal
from registry.remote.transport import Transport, part
from registry.webhook import Delivery, IssuedWebhook, Webhook


class _Replayed(msgspec.Struct):
    queued: int


class RemoteEvents:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

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
        params = {"after": after, "limit": limit, "kinds": None if kinds is None else sorted(kinds)}
        waiting = {"wait_seconds": seconds} if seconds else {}
        return self._http.get("/events", EventPage, principal=principal, params=params | waiting)

    def create_webhook(
        self, tenant: str, url: str, *, principal: Principal, kinds: Sequence[str] | None = None
    ) -> IssuedWebhook:
        """Tell this address of the tenant's events; the secret that signs them is in the result and not shown again."""
        body = {"url": url, "kinds": kinds}
        path = f"/tenants/{part(parse_tenant(tenant))}/webhooks"
        return self._http.ask("POST", path, IssuedWebhook, principal=principal, body=body)

    def list_webhooks(self, tenant: str, principal: Principal) -> list[Webhook]:
        """A tenant's webhooks, without their secrets."""
        return self._http.get(f"/tenants/{part(parse_tenant(tenant))}/webhooks", list[Webhook], principal=principal)

    def delete_webhook(self, webhook_id: str, principal: Principal) -> Webhook:
        """Remove a webhook with its deliveries."""
        return self._http.ask("DELETE", f"/webhooks/{part(webhook_id)}", Webhook, principal=principal)

    def webhook_deliveries(self, webhook_id: str, principal: Principal) -> list[Delivery]:
        """The newest deliveries of a webhook, and what became of them."""
        return self._http.get(f"/webhooks/{part(webhook_id)}/deliveries", list[Delivery], principal=principal)

    def replay_webhook(self, webhook_id: str, *, principal: Principal, after: int | None = None) -> int:
        """Deliver again what was given up, or every event after this number; enables the webhook."""
        path = f"/webhooks/{part(webhook_id)}/replay"
        return self._http.ask("POST", path, _Replayed, principal=principal, body={"after": after}).queued

    def test_webhook(self, webhook_id: str, principal: Principal) -> Delivery:
        """Send an event of kind `webhook.test` to this webhook alone."""
        return self._http.ask("POST", f"/webhooks/{part(webhook_id)}/test", Delivery, principal=principal)

    def webhook_policy(self, *, principal: Principal = OPERATOR) -> OutboundPolicy:
        """What webhooks may reach beyond public addresses over https."""
        return self._http.get("/webhook-policy", OutboundPolicy, principal=principal)

    def set_webhook_policy(self, policy: OutboundPolicy, principal: Principal) -> OutboundPolicy:
        """Allow webhooks to reach more. Only the operator may."""
        return self._http.ask("PUT", "/webhook-policy", OutboundPolicy, principal=principal, body=policy.to_json())
