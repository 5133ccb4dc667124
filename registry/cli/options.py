"""What the registry's commands share: how refusals are shown, and the arguments and options of several.

Where the registry is stands in `place.py`, and what a command is handed in `call.py`.
"""

from __future__ import annotations

from typing import Any

import click

from registry.cli.completion import complete_adapter, complete_alias, complete_reference
from registry.cli.home import HomePath
from registry.cli.place import REGISTRY_FOLDER, Place, open_given, open_place, place_options
from registry.errors import RegistryError
from registry.expected import ANY, Expected

__all__ = [
    "REGISTRY_FOLDER",
    "ExpectedVersion",
    "HomePath",
    "Place",
    "RegistryCommand",
    "RegistryGroup",
    "adapter_argument",
    "alias_option",
    "evidence_option",
    "expect_option",
    "json_option",
    "open_given",
    "open_place",
    "place_options",
    "reference_argument",
    "version_argument",
]


SENTENCE_CHARACTERS = 1_000


class RegistryCommand(click.Command):
    """A command that turns the registry's refusals into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RegistryError as error:
            raise click.ClickException(error.message) from error


class RegistryGroup(click.Group):
    """A group whose list says of each command its whole first sentence, on as many lines as that needs."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, found.get_short_help_str(SENTENCE_CHARACTERS)) for name, found in commands.items() if found]
            )


class ExpectedVersion(click.ParamType[Expected]):
    """A version number, or `none` for an alias that must not exist yet."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Expected:
        """Parse the text; a value that is parsed already stays."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # click hands back the default, which is one of ours
        if value == "none":
            return None
        if value.isascii() and value.isdigit():
            return int(value)
        raise click.BadParameter(f"{value!r} is neither a version number nor 'none'.", ctx, param)


adapter_argument = click.argument("adapter", metavar="TENANT/NAME", shell_complete=complete_adapter)
version_argument = click.argument("ref", metavar="TENANT/NAME@VERSION", shell_complete=complete_reference)
reference_argument = click.argument("ref", metavar="TENANT/NAME[@VERSION]", shell_complete=complete_reference)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
alias_option = click.option(
    "--alias",
    required=True,
    metavar="ALIAS",
    shell_complete=complete_alias,
    help="The alias, such as prod.",
)
evidence_option = click.option("--evidence", default="", help="Why; kept in the alias's history.")
expect_option = click.option(
    "--expect",
    type=ExpectedVersion(),
    default=ANY,
    help="Move it only if it points at this version now (none: if it does not exist).",
)
