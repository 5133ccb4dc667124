"""The commands about webhooks."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli import report, report_feed
from registry.cli.options import Place, RegistryCommand, RegistryGroup, json_option, open_place, place_options
from registry.events import EventKind
from registry.outbound import OutboundPolicy
from registry.principal import Principal

OPERATOR = Principal.operator()


@click.group(cls=RegistryGroup)
def webhook() -> None:
    """Tell other servers of what happens."""


@webhook.command("create", cls=RegistryCommand)
@click.argument("url")
@click.option("--tenant", required=True, help="The tenant whose events are told.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in EventKind]),
    multiple=True,
    help="Only this kind of event.",
)
@place_options
@json_option
def create_webhook(
    url: str, *, tenant: str, kinds: tuple[str, ...], home: Path, registry: Place | None, as_json: bool
) -> None:
    """Post each event of a tenant to URL, signed (Standard Webhooks). The secret is printed now and never again."""
    with open_place(home, registry) as reg:
        made = reg.create_webhook(tenant, url, kinds=kinds or None, principal=OPERATOR)
    report.show(made, report_feed.print_issued_webhook, as_json=as_json)


@webhook.command("ls", cls=RegistryCommand)
@click.option("--tenant", required=True, help="Whose webhooks.")
@place_options
@json_option
def list_webhooks(*, tenant: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """List a tenant's webhooks, without their secrets."""
    with open_place(home, registry) as reg:
        found = reg.list_webhooks(tenant, OPERATOR)
    report.show(found, report_feed.print_webhooks, as_json=as_json)


@webhook.command("deliveries", cls=RegistryCommand)
@click.argument("webhook_id")
@place_options
@json_option
def list_deliveries(webhook_id: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show the newest deliveries of a webhook, and why those failed that did."""
    with open_place(home, registry) as reg:
        found = reg.webhook_deliveries(webhook_id, OPERATOR)
    report.show(found, report_feed.print_deliveries, as_json=as_json)


@webhook.command("rm", cls=RegistryCommand)
@click.argument("webhook_id")
@place_options
@json_option
def remove_webhook(webhook_id: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Remove a webhook with its deliveries."""
    with open_place(home, registry) as reg:
        removed = reg.delete_webhook(webhook_id, OPERATOR)
    if as_json:
        report.print_json(removed)
    else:
        click.echo(f"Webhook {removed.webhook_id} of tenant {removed.tenant} is removed")


@webhook.command("test", cls=RegistryCommand)
@click.argument("webhook_id")
@place_options
@json_option
def test_webhook(webhook_id: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Send an event of kind webhook.test to this webhook alone."""
    with open_place(home, registry) as reg:
        delivery = reg.test_webhook(webhook_id, OPERATOR)
    if as_json:
        report.print_json(delivery)
    else:
        click.echo(f"Delivery {delivery.delivery_id} waits. A running server makes it.")
        click.echo(f"Next: loraplex webhook deliveries {webhook_id}")


@webhook.command("replay", cls=RegistryCommand)
@click.argument("webhook_id")
@click.option("--after", type=click.IntRange(0), default=None, help="Every event of a later number, delivered or not.")
@place_options
@json_option
def replay_webhook(webhook_id: str, *, after: int | None, home: Path, registry: Place | None, as_json: bool) -> None:
    """Deliver again what was given up, and enable the webhook if it was disabled."""
    with open_place(home, registry) as reg:
        queued = reg.replay_webhook(webhook_id, after=after, principal=OPERATOR)
    if as_json:
        report.print_json({"webhook_id": webhook_id, "queued": queued})
    else:
        click.echo(f"Webhook {webhook_id} is enabled, and {queued} deliveries wait. A running server makes them.")


@webhook.command("allow", cls=RegistryCommand)
@click.option("--http", "allows_http", is_flag=True, help="Allow http:// addresses too.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="Allow this host, wherever its address is.")
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Allow these addresses, such as 10.1.0.0/16."
)
@click.option("--nothing", is_flag=True, help="Go back to public addresses over https.")
@place_options
@json_option
def allow(
    *,
    allows_http: bool,
    hosts: tuple[str, ...],
    networks: tuple[str, ...],
    nothing: bool,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Say what webhooks may reach beyond public addresses over https; without options, show it.

    What is given replaces what was allowed before. Only the operator may.
    """
    is_given = allows_http or hosts or networks
    if nothing and is_given:
        raise click.UsageError("--nothing goes alone.")
    with open_place(home, registry) as reg:
        if nothing or is_given:
            policy = reg.set_webhook_policy(OutboundPolicy(allows_http, hosts, networks), OPERATOR)
        else:
            policy = reg.webhook_policy(principal=OPERATOR)
    report.show(policy, report_feed.print_policy, as_json=as_json)
