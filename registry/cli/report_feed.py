"""What the commands about events, webhooks, mirrors and archives print for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from registry.cli.quantities import span_text
from registry.cli.report import console, table_of, time_text
from registry.event import Event, EventKind
from registry.mirror import Mirror, MirrorSync
from registry.outbound import OutboundPolicy
from registry.printable import printable
from registry.webhook import Delivery, IssuedWebhook, Webhook

if TYPE_CHECKING:
    from registry.archive_index import ArchiveIndex, Imported

COMMIT_DIGITS = 12
URL_CHARACTERS = 80


def print_event(event: Event) -> None:
    """One line: number, time, kind, what it is about, and by whom."""
    said = {name: value for name, value in event.document.items() if name != "actor"}
    parts = [str(event.id), event.at.strftime("%Y-%m-%d %H:%M:%S"), event.kind, _subject(event, said)]
    actor = event.document.get("actor")
    click.echo(printable("  ".join(part for part in parts if part) + (f"  by {actor}" if actor else "")))


def print_issued_webhook(made: IssuedWebhook) -> None:
    """A webhook that was just made: the only time that its secret is seen."""
    kinds = "every kind of event" if made.kinds is None else ", ".join(made.kinds)
    click.echo(f"Webhook {made.webhook_id} tells {printable(made.url)} of {made.tenant}: {kinds}")
    click.echo(f"  secret    {made.secret}")
    click.echo("Keep it now: it verifies the deliveries, and cannot be shown again.")
    click.echo(f"Next: loraplex webhook test {made.webhook_id}")


def print_webhooks(webhooks: Sequence[Webhook]) -> None:
    """A tenant's webhooks."""
    if not webhooks:
        click.echo("No webhooks yet. Make one: loraplex webhook create URL --tenant TENANT")
        return
    table = table_of("WEBHOOK", "URL", "KINDS", "MADE", "BY", "DISABLED")
    for each in webhooks:
        kinds = "all" if each.kinds is None else ", ".join(each.kinds)
        url = Text(printable(each.url[:URL_CHARACTERS]))
        row = (each.webhook_id, url, kinds, time_text(each.created_at), each.created_by, time_text(each.disabled_at))
        table.add_row(*row)
    console().print(table)


def print_deliveries(deliveries: Sequence[Delivery]) -> None:
    """What became of a webhook's deliveries, newest first."""
    if not deliveries:
        click.echo("Nothing was to be delivered yet.")
        return
    table = table_of("DELIVERY", "EVENT", "KIND", "STATE", "ATTEMPTS", "STATUS", "WHEN", "FAILURE")
    for each in deliveries:
        state = "arrived" if each.delivered_at else "waits" if each.due_at else "given up"
        status = "-" if each.status is None else str(each.status)
        when = time_text(each.delivered_at or each.due_at)
        failure = Text(printable(each.failure or ""))
        table.add_row(
            str(each.delivery_id), str(each.event_id), each.kind, state, str(each.attempts), status, when, failure
        )
    console().print(table)


def print_policy(policy: OutboundPolicy) -> None:
    """What webhooks may reach."""
    click.echo("Webhooks may reach public addresses over https" + (" and http" if policy.allows_http else ""))
    for title, allowed in (("hosts", policy.hosts), ("networks", policy.networks)):
        if allowed:
            click.echo(f"  {title:<10}{', '.join(map(printable, allowed))}")


def print_sync(done: MirrorSync) -> None:
    """What looking at an upstream brought."""
    mirror, publication = done.mirror, done.publication
    source = f"{printable(mirror.upstream)} at commit {mirror.commit[:COMMIT_DIGITS]}"
    if publication is None:
        click.echo(f"{mirror.adapter} is what {printable(mirror.revision)} of {source} is: nothing to pull in")
        return
    version = publication.version
    verb = "is now" if publication.is_new else "was already"
    click.echo(f"{version.adapter}@{version.number} {verb} {source}")
    click.echo(f"  digest    {version.digest}")


def print_mirrors(mirrors: Sequence[Mirror]) -> None:
    """Where mirrored adapters come from."""
    if not mirrors:
        click.echo("No mirrors yet. Make one: loraplex mirror add TENANT/NAME --from https://HOST/ORG/REPO")
        return
    table = table_of("ADAPTER", "UPSTREAM", "REVISION", "COMMIT", "FETCHED", "EVERY", "STATE")
    for each in mirrors:
        upstream, revision = Text(printable(each.upstream)), Text(printable(each.revision))
        facts = (each.commit[:COMMIT_DIGITS], time_text(each.fetched_at), span_text(each.every_seconds))
        table.add_row(each.adapter, upstream, revision, *facts, _mirror_state(each))
    console().print(table)


def print_schedule(mirror: Mirror) -> None:
    """How often a mirror is looked at."""
    if mirror.every_seconds is None:
        click.echo(f"{mirror.adapter} is pulled in when `loraplex mirror sync` is run, and not by itself")
        return
    source, every = printable(mirror.upstream), span_text(mirror.every_seconds)
    click.echo(f"{mirror.adapter} follows {source} every {every}, while a server of this registry runs")


def _mirror_state(mirror: Mirror) -> Text:
    if mirror.failures:
        again = f"; again {time_text(mirror.next_sync_at)}" if mirror.next_sync_at else ""
        return Text(printable(f"failed {mirror.failures} times{again}: {mirror.failure}"))
    return Text("-" if mirror.checked_at is None else f"looked at {time_text(mirror.checked_at)}")


def print_export(index: ArchiveIndex, destination: Path) -> None:
    """What was written, and how it is read again."""
    count = len(index.versions)
    what = f"{index.adapter}@{index.versions[0].number}" if count == 1 else f"{count} versions of {index.adapter}"
    click.echo(f"{what} {'is' if count == 1 else 'are'} in {printable(str(destination))}")
    click.echo(f"Next: loraplex import {printable(str(destination))}")


def print_import(done: Imported) -> None:
    """What an import has published."""
    for each in done.versions:
        version = each.publication.version
        verb = "Imported" if each.publication.is_new else "Already there:"
        was = f" (was version {each.number})" if each.number != version.number else ""
        click.echo(f"{verb} {version.adapter}@{version.number}{was}  {version.digest}")
    for alias, number in done.aliases.items():
        click.echo(f"{done.adapter}@{alias} points at version {number}")


def _subject(event: Event, said: Mapping[str, Any]) -> str:
    """What an event is about, in the words of a reference."""
    if event.kind == EventKind.VERSION_PUBLISHED:
        return f"{event.adapter}@{said['version']}"
    if event.kind in (EventKind.ALIAS_PROMOTED, EventKind.ALIAS_ROLLED_BACK):
        origin = "nowhere" if said["from_version"] is None else said["from_version"]
        return f"{event.adapter}@{said['alias']}: {origin} -> {said['to_version']}"
    details = " ".join(f"{name}={value}" for name, value in said.items() if isinstance(value, (str, int)))
    return f"{event.adapter} {details}".strip()
