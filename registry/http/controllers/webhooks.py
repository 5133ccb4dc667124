"""Webhooks of a tenant: made, listed, removed, tested and replayed by its admins."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post, put
from litestar.params import JSONBody, PathParameter

from registry.http.parameters import TenantPart
from registry.http.service import caller_of, registry_of
from registry.outbound import URL_CHARACTERS, OutboundPolicy
from registry.webhook import Delivery, IssuedWebhook, Webhook

HOSTS_LIMIT = 100
WebhookPart = Annotated[str, PathParameter(max_length=40, description="A webhook's id, `whk_...`.")]
Kind = Annotated[str, msgspec.Meta(max_length=40)]
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
Hosts = Annotated[tuple[Host, ...], msgspec.Meta(max_length=HOSTS_LIMIT)]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to post, and which kinds of events (null: all)."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=URL_CHARACTERS)]
    kinds: Annotated[list[Kind], msgspec.Meta(min_length=1, max_length=32)] | None = None


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From which event on (null: only deliveries that were given up)."""

    after: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Replayed(msgspec.Struct, frozen=True):
    """How many deliveries wait again."""

    queued: int


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What webhooks may reach beyond public addresses over https: http, names of hosts, networks."""

    allows_http: bool = False
    hosts: Hosts = ()
    networks: Hosts = ()


class TenantWebhookController(Controller):
    """The webhooks of one tenant."""

    path = "/tenants/{tenant:str}/webhooks"
    tags = ("webhooks",)

    @get(sync_to_thread=True)
    def list_webhooks(self, request: Request[Any, Any, Any], tenant: TenantPart) -> list[Webhook]:
        """A tenant's webhooks, without their secrets, oldest first."""
        return registry_of(request).list_webhooks(tenant, caller_of(request))

    @post(sync_to_thread=True)
    def create_webhook(
        self, request: Request[Any, Any, Any], data: JSONBody[NewWebhook], tenant: TenantPart
    ) -> IssuedWebhook:
        """Make a webhook. The secret that signs its deliveries is in this answer and not shown again."""
        return registry_of(request).create_webhook(tenant, data.url, kinds=data.kinds, principal=caller_of(request))


class WebhookController(Controller):
    """Webhooks by their ids."""

    path = "/webhooks"
    tags = ("webhooks",)

    @delete("/{webhook_id:str}", status_code=200, sync_to_thread=True)
    def delete_webhook(self, request: Request[Any, Any, Any], webhook_id: WebhookPart) -> Webhook:
        """Remove a webhook with its deliveries."""
        return registry_of(request).delete_webhook(webhook_id, caller_of(request))

    @get("/{webhook_id:str}/deliveries", sync_to_thread=True)
    def list_deliveries(self, request: Request[Any, Any, Any], webhook_id: WebhookPart) -> list[Delivery]:
        """The newest deliveries, newest first, and what became of them."""
        return registry_of(request).webhook_deliveries(webhook_id, caller_of(request))

    @post("/{webhook_id:str}/replay", status_code=200, sync_to_thread=True)
    def replay_webhook(
        self, request: Request[Any, Any, Any], data: JSONBody[Replay], webhook_id: WebhookPart
    ) -> Replayed:
        """Deliver again, and enable the webhook if it was disabled; at most 1000 at once."""
        return Replayed(registry_of(request).replay_webhook(webhook_id, after=data.after, principal=caller_of(request)))

    @post("/{webhook_id:str}/test", sync_to_thread=True)
    def test_webhook(self, request: Request[Any, Any, Any], webhook_id: WebhookPart) -> Delivery:
        """Send an event of kind `webhook.test` to this webhook alone."""
        return registry_of(request).test_webhook(webhook_id, caller_of(request))


class WebhookPolicyController(Controller):
    """What the operator allows webhooks to reach."""

    path = "/webhook-policy"
    tags = ("webhooks",)

    @get(sync_to_thread=True)
    def show_policy(self, request: Request[Any, Any, Any]) -> OutboundPolicy:
        """What webhooks may reach beyond public addresses over https. For the operator only."""
        return registry_of(request).webhook_policy(principal=caller_of(request))

    @put(sync_to_thread=True)
    def set_policy(self, request: Request[Any, Any, Any], data: JSONBody[Policy]) -> OutboundPolicy:
        """Allow webhooks to reach more, or less. For the operator only."""
        policy = OutboundPolicy(data.allows_http, data.hosts, data.networks)
        return registry_of(request).set_webhook_policy(policy, principal=caller_of(request))
