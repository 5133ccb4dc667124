"""The commands about canaries: a part of an alias's requests goes to a second version."""

from __future__ import annotations

from pathlib import Path

import click

from registry.aliases import Expected
from registry.canary import PERMILLE
from registry.cli import report, report_promotion
from registry.cli.options import (
    Place,
    RegistryCommand,
    RegistryGroup,
    alias_option,
    evidence_option,
    expect_option,
    json_option,
    open_place,
    place_options,
)
from registry.principal import Principal

percent_option = click.option(
    "--percent",
    type=click.FloatRange(0.1, 100.0),
    required=True,
    help="Part of the alias's requests, in steps of 0.1.",
)


@click.group(cls=RegistryGroup)
def canary() -> None:
    """Give a part of an alias's requests to a second version."""


@canary.command("start", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@alias_option
@percent_option
@place_options
@json_option
def start_canary(ref: str, *, alias: str, percent: float, home: Path, registry: Place | None, as_json: bool) -> None:
    """Give a part of ALIAS to this version, in the place of a canary that runs. It passes no gate yet."""
    with open_place(home, registry) as reg:
        started = reg.start_canary(ref, alias, permille=_permille(percent), principal=Principal.operator())
    report.show(started, report_promotion.print_canary, as_json=as_json)


@canary.command("weight", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@percent_option
@place_options
@json_option
def change_canary(
    adapter: str, *, alias: str, percent: float, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Give the canary of ALIAS another part; who had it keeps it where the part grows."""
    with open_place(home, registry) as reg:
        changed = reg.change_canary(adapter, alias, permille=_permille(percent), principal=Principal.operator())
    report.show(changed, report_promotion.print_canary, as_json=as_json)


@canary.command("show", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@place_options
@json_option
def show_canaries(adapter: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show the canaries that run on an adapter's aliases."""
    with open_place(home, registry) as reg:
        running = reg.canaries(adapter, Principal.operator())
    report.show(running, report_promotion.print_canaries, as_json=as_json)


@canary.command("stop", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@place_options
@json_option
def stop_canary(adapter: str, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """End the canary of ALIAS: every request goes to the version that it points at."""
    with open_place(home, registry) as reg:
        ended = reg.stop_canary(adapter, alias, principal=Principal.operator())
    if as_json:
        report.print_json(ended)
    else:
        click.echo(f"{adapter}@{alias} has no canary any more (it was version {ended.number})")


@canary.command("promote", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@expect_option
@evidence_option
@place_options
@json_option
def promote_canary(
    adapter: str, *, alias: str, expect: Expected, evidence: str, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Point ALIAS at the canary's version, if the alias's policy lets it through; that ends the canary."""
    operator = Principal.operator()
    with open_place(home, registry) as reg:
        move = reg.promote_canary(adapter, alias, principal=operator, expected=expect, evidence=evidence)
    report.show(move, report.print_move, as_json=as_json)


def _permille(percent: float) -> int:
    permille = round(percent * PERMILLE / 100)
    if abs(permille * 100 / PERMILLE - percent) > 1e-9:
        raise click.BadParameter(f"{percent} is not a multiple of 0.1.")
    return permille
