"""The commands that tell about versions: lineage, card, diff."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from registry.cli import report, report_insight
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_reference
from registry.cli.options import RegistryCommand, reference_argument
from registry.errors import InvalidValueError
from registry.lineage import BASE_DIGITS_MIN, DEPTH_LIMIT
from registry.principal import OPERATOR

if TYPE_CHECKING:
    from registry.registry import Registry

FINGERPRINT_DIGITS_SHOWN = 12


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="[TENANT/NAME[@VERSION]]", required=False, shell_complete=complete_reference)
@click.option(
    "--base", default=None, metavar="NAME|HEX", help="All versions of the base of this name or fingerprint, instead."
)
@click.option(
    "--depth",
    type=click.IntRange(0, DEPTH_LIMIT),
    default=DEPTH_LIMIT,
    show_default=True,
    help="Generations upwards and downwards.",
)
@registry_call
def lineage(call: RegistryCall, ref: str | None, *, base: str | None, depth: int) -> None:
    """Show what a version was trained from, on which base and data, and what was trained from it."""
    if (ref is None) == (base is None):
        raise click.UsageError("Name either a version (TENANT/NAME[@VERSION]) or a base (--base NAME|HEX).")
    with call.open() as reg:
        if ref is not None:
            graph = reg.lineage(ref, OPERATOR, depth=depth)
        else:
            graph = reg.base_lineage(_fingerprint_of(reg, str(base)), OPERATOR)
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


def _fingerprint_of(reg: Registry, base: str) -> str:
    """The whole fingerprint of a registered base, by its name or the first digits. Raises InvalidValueError."""
    known = reg.bases()
    digits = base if len(base) >= BASE_DIGITS_MIN else None
    found = [each for each in known if each.name == base or (digits and each.fingerprint.startswith(digits))]
    if len(found) == 1:
        return found[0].fingerprint
    offered = ", ".join(f"{each.fingerprint[:FINGERPRINT_DIGITS_SHOWN]} ({each.name})" for each in found or known)
    if found:
        raise InvalidValueError("base", f"several are called {base!r}: choose one of {offered}")
    here = f"registered here are {offered}" if known else "none is registered here: see `loraplex base register`"
    raise InvalidValueError("base", f"{base!r} is neither the name nor the fingerprint of a base; {here}")
