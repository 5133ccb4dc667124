"""One call of a command: which registry it is about, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from registry import local_bases
from registry.cli.options import json_option
from registry.cli.place import Command, Place, open_place, place_options
from registry.cli.report import print_json
from registry.scheme import HTTP_SCHEMES, scheme_of

if TYPE_CHECKING:
    from registry.registry import Registry

Value = TypeVar("Value")


@dataclass(frozen=True)
class RegistryCall:
    """What --home, --registry and --json say. What --token and --blobs say is with the running command (`place.py`)."""

    home: Path
    place: Place | None
    as_json: bool

    def open(self, *, create: bool = False) -> Registry:
        """The registry. Raises errors of the registry."""
        return open_place(self.home, self.place, create=create)

    def open_with_bases(self) -> Registry:
        """As `open`, made where there is none, with every base of the home registered: for what enters adapters."""
        reg = self.open(create=True)
        try:
            local_bases.register_all(reg, self.home, warn=lambda text: click.echo(f"Warning: {text}", err=True))
        except BaseException:
            reg.close()
            raise
        return reg

    def open_local(self, *, create: bool = False) -> Registry:
        """As `open`, for what needs the registry's own storage; one over HTTP is refused with what to do instead."""
        if self.place is not None and scheme_of(self.place) in HTTP_SCHEMES:
            command = click.get_current_context().command_path
            raise click.ClickException(
                f"`{command}` works on the registry's own storage, which {self.place} does not hand out. Run it on the "
                "machine of that server, with what its `loraplex registry serve` was given: --registry DIR, or "
                "--registry postgresql://... and --blobs."
            )
        return self.open(create=create)

    def show(self, value: Value, print_it: Callable[[Value], object]) -> None:
        """Print a value as JSON for programs, or in its own way for people."""
        if self.as_json:
            print_json(value)
        else:
            print_it(value)

    def say(self, value: Any, *lines: str) -> None:
        """Print a value as JSON for programs, or these lines for people."""
        if self.as_json:
            print_json(value)
        else:
            click.echo("\n".join(lines))


def registry_call(command: Callable[..., None]) -> Command:
    """Give a command the options of `place_options` and --json, and hand it what they say as its first argument."""

    @wraps(command)
    def run(*, home: Path, registry: Place | None, as_json: bool, **options: Any) -> None:
        command(RegistryCall(home, registry, as_json), **options)

    return place_options(json_option(run))
