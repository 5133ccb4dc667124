"""The commands about webhooks."""

from __future__ import annotations

import click

from registry.cli import report_feed
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_tenant
from registry.cli.options import RegistryCommand, RegistryGroup
from registry.event import EventKind
from registry.outbound import OutboundPolicy
from registry.principal import OPERATOR


@click.group(cls=RegistryGroup)
def webhook() -> None:
    """Tell other servers of what happens."""


@webhook.command("create", cls=RegistryCommand)
@click.argument("url")
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="The tenant whose events are told.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in EventKind]),
    multiple=True,
    help="Only this kind of event.",
)
@registry_call
def create_webhook(call: RegistryCall, url: str, *, tenant: str, kinds: tuple[str, ...]) -> None:
    """Post each event of a tenant to URL, signed (Standard Webhooks). The secret is printed now and never again."""
    with call.open() as reg:
        made = reg.create_webhook(tenant, url, kinds=kinds or None, principal=OPERATOR)
    call.show(made, report_feed.print_issued_webhook)


@webhook.command("ls", cls=RegistryCommand)
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="Whose webhooks.")
@registry_call
def list_webhooks(call: RegistryCall, *, tenant: str) -> None:
    """List a tenant's webhooks, without their secrets."""
    with call.open() as reg:
        found = reg.list_webhooks(tenant, OPERATOR)
    call.show(found, report_feed.print_webhooks)


@webhook.command("deliveries", cls=RegistryCommand)
@click.argument("webhook_id")
@registry_call
def list_deliveries(call: RegistryCall, webhook_id: str) -> None:
    """Show the newest deliveries of a webhook, and why those failed that did."""
    with call.open() as reg:
        found = reg.webhook_deliveries(webhook_id, OPERATOR)
    call.show(found, report_feed.print_deliveries)


@webhook.command("rm", cls=RegistryCommand)
@click.argument("webhook_id")
@registry_call
def remove_webhook(call: RegistryCall, webhook_id: str) -> None:
    """Remove a webhook with its deliveries."""
    with call.open() as reg:
        removed = reg.delete_webhook(webhook_id, OPERATOR)
    call.say(removed, f"Webhook {removed.webhook_id} of tenant {removed.tenant} is removed")


@webhook.command("test", cls=RegistryCommand)
@click.argument("webhook_id")
@registry_call
def test_webhook(call: RegistryCall, webhook_id: str) -> None:
    """Send an event of kind webhook.test to this webhook alone."""
    with call.open() as reg:
        delivery = reg.test_webhook(webhook_id, OPERATOR)
    call.say(
        delivery,
        f"Delivery {delivery.delivery_id} waits. A running server makes it.",
        f"Next: loraplex webhook deliveries {webhook_id}",
    )


@webhook.command("replay", cls=RegistryCommand)
@click.argument("webhook_id")
@click.option("--after", type=click.IntRange(0), default=None, help="Every event of a later number, delivered or not.")
@registry_call
def replay_webhook(call: RegistryCall, webhook_id: str, *, after: int | None) -> None:
    """Deliver again what was given up, and enable the webhook if it was disabled."""
    with call.open() as reg:
        queued = reg.replay_webhook(webhook_id, after=after, principal=OPERATOR)
    call.say(
        {"webhook_id": webhook_id, "queued": queued},
        f"Webhook {webhook_id} is enabled, and {queued} deliveries wait. A running server makes them.",
    )


@webhook.command("allow", cls=RegistryCommand)
@click.option("--http", "allows_http", is_flag=True, help="Allow http:// addresses too.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="Allow this host, wherever its address is.")
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Allow these addresses, such as 10.1.0.0/16."
)
@click.option("--nothing", is_flag=True, help="Go back to public addresses over https.")
@registry_call
def allow(
    call: RegistryCall, *, allows_http: bool, hosts: tuple[str, ...], networks: tuple[str, ...], nothing: bool
) -> None:
    """Say what webhooks may reach beyond public addresses over https; without options, show it.

    What is given replaces what was allowed before. Only the operator may.
    """
    is_given = allows_http or hosts or networks
    if nothing and is_given:
        raise click.UsageError("--nothing goes alone.")
    with call.open() as reg:
        if nothing or is_given:
            policy = reg.set_webhook_policy(OutboundPolicy(allows_http, hosts, networks), OPERATOR)
        else:
            policy = reg.webhook_policy(principal=OPERATOR)
    call.show(policy, report_feed.print_policy)
