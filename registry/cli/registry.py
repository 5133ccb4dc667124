"""`loraplex registry ...`: the commands that run a registry and look after it."""

from __future__ import annotations

import click

from registry.cli.backup import backup, restore
from registry.cli.caretaker import upkeep
from registry.cli.options import RegistryGroup
from registry.cli.serve import serve


@click.group(cls=RegistryGroup)
def registry() -> None:
    """Run a registry, and look after it."""


registry.add_command(serve)
registry.add_command(upkeep)
registry.add_command(backup)
registry.add_command(restore)
