"""The command that shows what happened: `loraplex events`."""

from __future__ import annotations

import click
import msgspec

from registry.cli import report_feed
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import RegistryCommand
from registry.event import PAGE_EVENTS, Event, EventKind
from registry.principal import OPERATOR

FOLLOW_SECONDS = 20.0
SHOWN_LIMIT = 1_000


@click.command(cls=RegistryCommand)
@click.option("--follow", "-f", is_flag=True, help="Go on, and print what happens until interrupted.")
@click.option("--after", type=click.IntRange(0), default=None, help="Only events of a later number.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in EventKind]),
    multiple=True,
    help="Only events of this kind.",
)
@click.option(
    "--limit", type=click.IntRange(1, SHOWN_LIMIT), default=PAGE_EVENTS, show_default=True, help="Events of a page."
)
@registry_call
def events(call: RegistryCall, *, follow: bool, after: int | None, kinds: tuple[str, ...], limit: int) -> None:
    """Show publishes, promotions and other changes, oldest first.

    Without --after, all from the beginning; with --follow and no --after, what happens from now on. --json prints one
    event a line, and --after takes the number of the last one that was seen.
    """
    with call.open() as reg:
        cursor = after if after is not None or follow else 0
        page = reg.events(OPERATOR, after=cursor, limit=limit, kinds=kinds or None)
        while True:
            if cursor and not page.is_complete:
                click.echo(f"Warning: events after {cursor} are not kept any more; what is left follows.", err=True)
            cursor = page.cursor
            for event in page.events:
                _print(event, as_json=call.as_json)
            if not follow and len(page.events) < limit:
                break
            seconds = FOLLOW_SECONDS if follow else 0.0
            page = reg.events(OPERATOR, after=page.cursor, limit=limit, kinds=kinds or None, seconds=seconds)


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(event).decode())
    else:
        report_feed.print_event(event)
