"""The commands that tell about versions: lineage, card, diff."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli import report, report_insight
from registry.cli.options import Place, RegistryCommand, json_option, open_place, place_options
from registry.lineage import DEPTH_LIMIT
from registry.principal import Principal


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME[@VERSION]", required=False)
@click.option("--base", "base_fingerprint", default=None, metavar="HEX", help="All versions of this base, instead.")
@click.option(
    "--depth",
    type=click.IntRange(0, DEPTH_LIMIT),
    default=DEPTH_LIMIT,
    show_default=True,
    help="Generations upwards and downwards.",
)
@place_options
@json_option
def lineage(
    ref: str | None,
    *,
    base_fingerprint: str | None,
    depth: int,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Show what a version was trained from, on which base and data, and what was trained from it."""
    if (ref is None) == (base_fingerprint is None):
        raise click.UsageError("Name either TENANT/NAME[@VERSION] or --base HEX.")
    operator = Principal.operator()
    with open_place(home, registry) as reg:
        if ref is not None:
            graph = reg.lineage(ref, operator, depth=depth)
        else:
            graph = reg.base_lineage(str(base_fingerprint), operator)
    report.show(graph, report_insight.print_lineage, as_json=as_json)


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME[@VERSION]")
@place_options
@json_option
def card(ref: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Print a version's model card, made from what the registry knows of it: Markdown for the Hub."""
    with open_place(home, registry) as reg:
        text = reg.card(ref, Principal.operator())
    if as_json:
        report.print_json({"markdown": text})
    else:
        click.echo(text, nl=False)


@click.command(cls=RegistryCommand)
@click.argument("before", metavar="TENANT/NAME@VERSION")
@click.argument("after", metavar="TENANT/NAME@VERSION")
@click.option("--weights/--no-weights", default=True, help="Compare the weights too.  [default: weights]")
@place_options
@json_option
def diff(before: str, after: str, *, weights: bool, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show how two versions differ: files, config, metrics, and how far apart their weights are."""
    with open_place(home, registry) as reg:
        found = reg.diff(before, after, Principal.operator(), with_weights=weights)
    report.show(found, report_insight.print_diff, as_json=as_json)
