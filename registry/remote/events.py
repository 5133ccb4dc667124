"""Events, webhooks and mirrors of a registry over HTTP."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

import msgspec

from registry.events import PAGE_EVENTS, EventPage
from registry.mirror import DEFAULT_REVISION, Mirror, MirrorSync
from registry.names import AdapterName, parse_tenant
from registry.outbound import OutboundPolicy
from registry.principal import OPERATOR, Principal
from registry.remote.transport import Transport, part
from registry.webhooks import Delivery, IssuedWebhook, Webhook


class _Replayed(msgspec.Struct):
    queued: int


class RemoteEvents:
    """A part of `RemoteRegistry`; the contracts are those of `registry.registry.Registry`."""

    _http: Transport

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

    def add_mirror(
        self,
        name: str,
        source: str,
        *,
        principal: Principal,
        revision: str = DEFAULT_REVISION,
        token: str | None = None,
        base_fingerprint: str | None = None,
    ) -> MirrorSync:
        """Pull an adapter in from another Hub, and remember where it came from; `token` is for that Hub."""
        body = {"source": source, "revision": revision, "token": token, "base_fingerprint": base_fingerprint}
        return self._http.ask("PUT", _mirror_path(name), MirrorSync, principal=principal, body=body)

    def sync_mirror(self, name: str, *, principal: Principal, token: str | None = None) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one."""
        path = f"{_mirror_path(name)}/sync"
        return self._http.ask("POST", path, MirrorSync, principal=principal, body={"token": token})

    def follow_mirror(self, name: str, every: timedelta | None, *, principal: Principal) -> Mirror:
        """Look at the mirror's upstream so often; None is never by itself."""
        body = {"every_seconds": None if every is None else round(every.total_seconds())}
        return self._http.ask("PUT", f"{_mirror_path(name)}/schedule", Mirror, principal=principal, body=body)

    def list_mirrors(self, principal: Principal) -> list[Mirror]:
        """Where mirrored adapters come from, as far as the caller may read them."""
        return self._http.get("/mirrors", list[Mirror], principal=principal)

    def remove_mirror(self, name: str, principal: Principal) -> Mirror:
        """Forget where an adapter came from; its versions stay."""
        return self._http.ask("DELETE", _mirror_path(name), Mirror, principal=principal)


def _mirror_path(name: str) -> str:
    parsed = AdapterName.parse(name)
    return f"/adapters/{part(parsed.tenant)}/{part(parsed.name)}/mirror"
