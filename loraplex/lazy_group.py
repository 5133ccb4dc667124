"""A click group whose commands are imported when they are called, and whose errors are shown without a traceback.

`loraplex --help` lists each command from its one line in the table, so it answers without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from loraplex.origin import add_origin
from loraplex.settings import name_variables, variables_read
from loraplex.threads import let_waiting_threads_sleep

# The root of each package's errors, by name: naming them here must not import the packages.
SHOWN_TO_USERS = frozenset(
    {
        "basemodel.errors.BaseModelError",
        "loraplex.errors.LoraplexError",
        "registry.errors.RegistryError",
        "serving.errors.ServingError",
        "trainer.errors.TrainerError",
    }
)


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is (`module:attribute`) and its line in the list of commands."""

    target: str
    help: str

    def load(self) -> click.Command:
        """Import the command, which may load torch: what torch reads from the environment is set first."""
        let_waiting_threads_sleep()
        module, _, attribute = self.target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{self.target} is not a click command"
        name_variables(command, str(command.name))
        return command


class LazyGroup(click.Group):
    """A group over a table of `LazyCommand`s. Nothing changes it after it is made."""

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the table."""
        return list(self.lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None where the table has no such name."""
        entry = self.lazy_commands.get(cmd_name)
        return entry.load() if entry else None

    def variables_read(self) -> set[str]:
        """The environment variables that some command reads. Imports every command."""
        return set().union(*(variables_read(entry.load(), name) for name, entry in self.lazy_commands.items()))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.lazy_commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Complete command names from the table; options as click does."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            click.shell_completion.CompletionItem(name, help=entry.help)
            for name, entry in self.lazy_commands.items()
            if name.startswith(incomplete)
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the group's own options; a value that is refused is named with where it came from."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            add_origin(error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, whose refused values are named as the group's own are.

        An error that a package raises on purpose becomes one line and exit status 1.
        """
        try:
            return super().invoke(ctx)
        except click.BadParameter as error:
            add_origin(error)
            raise
        except Exception as error:
            if is_shown_to_users(error):
                raise click.ClickException(str(error)) from error
            raise


def is_shown_to_users(error: BaseException) -> bool:
    """Whether one of our packages raised this on purpose, with a text for the user."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in SHOWN_TO_USERS for kind in type(error).__mro__)
