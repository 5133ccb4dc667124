"""The commands that tell about versions: lineage, card, diff."""

from __future__ import annotations

import click

from registry.cli import report, report_insight
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_reference
from registry.cli.options import RegistryCommand, reference_argument
from registry.lineage import DEPTH_LIMIT
from registry.principal import OPERATOR


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="[TENANT/NAME[@VERSION]]", required=False, shell_complete=complete_reference)
@click.option("--base", "base_fingerprint", default=None, metavar="HEX", help="All versions of this base, instead.")
@click.option(
    "--depth",
    type=click.IntRange(0, DEPTH_LIMIT),
    default=DEPTH_LIMIT,
    show_default=True,
    help="Generations upwards and downwards.",
)
@registry_call
def lineage(call: RegistryCall, ref: str | None, *, base_fingerprint: str | None, depth: int) -> None:
    """Show what a version was trained from, on which base and data, and what was trained from it."""
    if (ref is None) == (base_fingerprint is None):
        raise click.UsageError("Name either TENANT/NAME[@VERSION] or --base HEX.")
    with call.open() as reg:
        if ref is not None:
            graph = reg.lineage(ref, OPERATOR, depth=depth)
        else:
            graph = reg.base_lineage(str(base_fingerprint), OPERATOR)
    call.show(graph, report_insight.print_lineage)


@click.command(cls=RegistryCommand)
@reference_argument
@registry_call
def card(call: RegistryCall, ref: str) -> None:
    """Print a version's model card, made from what the registry knows of it: Markdown for the Hub."""
    with call.open() as reg:
        text = reg.card(ref, OPERATOR)
    if call.as_json:
        report.print_json({"markdown": text})
    else:
        click.echo(text, nl=False)


@click.command(cls=RegistryCommand)
@click.argument("before", metavar="TENANT/NAME@VERSION", shell_complete=complete_reference)
@click.argument("after", metavar="TENANT/NAME@VERSION", shell_complete=complete_reference)
@click.option("--weights/--no-weights", default=True, help="Compare the weights too.  [default: weights]")
@registry_call
def diff(call: RegistryCall, before: str, after: str, *, weights: bool) -> None:
    """Show how two versions differ: files, config, metrics, and how far apart their weights are."""
    with call.open() as reg:
        found = reg.diff(before, after, OPERATOR, with_weights=weights)
    call.show(found, report_insight.print_diff)
