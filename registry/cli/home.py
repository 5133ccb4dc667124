"""The home: the folder that every command has its things in, and paths in which `~` is the user's."""

from __future__ import annotations

from pathlib import Path

import click


class HomePath(click.Path):
    """A path in which `~` is the user's home."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand `~`, then check as click does."""
        return Path(str(super().convert(str(Path(str(value)).expanduser()), param, ctx)))


home_option = click.option(
    "--home",
    type=HomePath(file_okay=False),
    envvar="LORAPLEX_HOME",
    default="~/.loraplex",
    show_default=True,
    help="Folder of bases, registry, runs and caches.",
)
