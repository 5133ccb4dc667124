"""The commands about canaries: a part of an alias's requests goes to a second version."""

from __future__ import annotations

import click

from registry.canary import PERMILLE
from registry.cli import report, report_promotion
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import (
    RegistryCommand,
    RegistryGroup,
    adapter_argument,
    alias_option,
    evidence_option,
    expect_option,
    version_argument,
)
from registry.expected import Expected
from registry.principal import OPERATOR

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
@version_argument
@alias_option
@percent_option
@registry_call
def start_canary(call: RegistryCall, ref: str, *, alias: str, percent: float) -> None:
    """Give a part of ALIAS to this version, in the place of a canary that runs. It passes no gate yet."""
    with call.open() as reg:
        started = reg.start_canary(ref, alias, permille=_permille(percent), principal=OPERATOR)
    call.show(started, report_promotion.print_canary)


@canary.command("weight", cls=RegistryCommand)
@adapter_argument
@alias_option
@percent_option
@registry_call
def change_canary(call: RegistryCall, adapter: str, *, alias: str, percent: float) -> None:
    """Give the canary of ALIAS another part; who had it keeps it where the part grows."""
    with call.open() as reg:
        changed = reg.change_canary(adapter, alias, permille=_permille(percent), principal=OPERATOR)
    call.show(changed, report_promotion.print_canary)


@canary.command("show", cls=RegistryCommand)
@adapter_argument
@registry_call
def show_canaries(call: RegistryCall, adapter: str) -> None:
    """Show the canaries that run on an adapter's aliases."""
    with call.open() as reg:
        running = reg.canaries(adapter, OPERATOR)
    call.show(running, report_promotion.print_canaries)


@canary.command("stop", cls=RegistryCommand)
@adapter_argument
@alias_option
@registry_call
def stop_canary(call: RegistryCall, adapter: str, *, alias: str) -> None:
    """End the canary of ALIAS: every request goes to the version that it points at."""
    with call.open() as reg:
        ended = reg.stop_canary(adapter, alias, principal=OPERATOR)
    call.say(ended, f"{adapter}@{alias} has no canary any more (it was version {ended.number})")


@canary.command("promote", cls=RegistryCommand)
@adapter_argument
@alias_option
@expect_option
@evidence_option
@registry_call
def promote_canary(call: RegistryCall, adapter: str, *, alias: str, expect: Expected, evidence: str) -> None:
    """Point ALIAS at the canary's version, if the alias's policy lets it through; that ends the canary."""
    with call.open() as reg:
        move = reg.promote_canary(adapter, alias, principal=OPERATOR, expected=expect, evidence=evidence)
    call.show(move, report.print_move)


def _permille(percent: float) -> int:
    permille = round(percent * PERMILLE / 100)
    if abs(permille * 100 / PERMILLE - percent) > 1e-9:
        raise click.BadParameter(f"{percent} is not a multiple of 0.1.")
    return permille
