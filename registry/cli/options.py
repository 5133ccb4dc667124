"""What the registry's commands share: where the registry is, how refusals are shown, and the options of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from registry.aliases import ANY, Expected
from registry.errors import RegistryError
from registry.opening import open_registry
from registry.registry import Registry

REGISTRY_FOLDER = "registry"


class RegistryCommand(click.Command):
    """A command that turns the registry's refusals into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RegistryError as error:
            raise click.ClickException(error.message) from error


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


class HomePath(click.Path):
    """A path in which `~` is the user's home."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand `~`, then check as click does."""
        return Path(str(super().convert(str(Path(str(value)).expanduser()), param, ctx)))


Command = Callable[..., None]


def place_options(command: Command) -> Command:
    """Add --home and --registry: where the registry is."""
    command = click.option(
        "--registry",
        type=HomePath(file_okay=False),
        default=None,
        help="Folder of the registry.  [default: HOME/registry]",
    )(command)
    return click.option(
        "--home",
        type=HomePath(file_okay=False),
        envvar="LORAPLEX_HOME",
        default="~/.loraplex",
        show_default=True,
        help="Folder of bases, registry, runs and caches.",
    )(command)


def open_place(home: Path, registry: Path | None, *, create: bool = False) -> Registry:
    """The registry that the options of `place_options` name. Raises NotFoundError, StorageError."""
    return open_registry(registry or home / REGISTRY_FOLDER, create=create)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
alias_option = click.option("--alias", required=True, metavar="ALIAS", help="The alias to move, such as prod.")
evidence_option = click.option("--evidence", default="", help="Why; kept in the alias's history.")
expect_option = click.option(
    "--expect",
    type=ExpectedVersion(),
    default=ANY,
    help="Move it only if it points at this version now (none: if it does not exist).",
)
