"""The commands about aliases themselves: alias ls, history, delete. `promote` and `rollback` move them."""

from __future__ import annotations

import click

from registry.cli import report
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import (
    RegistryCommand,
    RegistryGroup,
    adapter_argument,
    alias_option,
    evidence_option,
)
from registry.expected import ANY
from registry.names import VERSION_NUMBER_DIGITS
from registry.principal import OPERATOR


@click.group(cls=RegistryGroup)
def alias() -> None:
    """List aliases and their moves, and delete them; `loraplex promote` makes and moves them."""


@alias.command("ls", cls=RegistryCommand)
@adapter_argument
@registry_call
def list_aliases(call: RegistryCall, adapter: str) -> None:
    """List an adapter's aliases, and the version that each points at."""
    with call.open() as reg:
        pointing = reg.aliases(adapter, OPERATOR)
    call.show(pointing, lambda aliases: report.print_aliases(adapter, aliases))


@alias.command("history", cls=RegistryCommand)
@adapter_argument
@alias_option
@registry_call
def show_history(call: RegistryCall, adapter: str, *, alias: str) -> None:
    """Show every move of ALIAS, newest first; also after it was deleted."""
    with call.open() as reg:
        moves = reg.alias_history(adapter, alias, OPERATOR)
    call.show(moves, lambda found: report.print_histories({alias: found}))


@alias.command("delete", cls=RegistryCommand)
@adapter_argument
@alias_option
@click.option(
    "--expect",
    type=click.IntRange(1, 10**VERSION_NUMBER_DIGITS - 1),
    default=None,
    metavar="N",
    help="Delete it only if it points at this version now.",
)
@evidence_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@registry_call
def delete_alias(call: RegistryCall, adapter: str, *, alias: str, expect: int | None, evidence: str, yes: bool) -> None:
    """Delete ALIAS: requests for TENANT/NAME@ALIAS find nothing from then on.

    Its canary ends, and no version is kept for its sake any more. Its history stays, and its policy: deleting an alias
    that has one takes the role admin.
    """
    if not yes and not call.as_json:
        click.confirm(f"Delete the alias {adapter}@{alias}? Requests that name it will fail", abort=True)
    with call.open() as reg:
        move = reg.delete_alias(adapter, alias, principal=OPERATOR, expected=expect or ANY, evidence=evidence)
    call.show(move, report.print_move)
