"""Where the registry is that a command acts on, and what it is asked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from registry.cli.home import HomePath, home_option
from registry.cli.progress import progress_of
from registry.opening import open_registry, open_remote
from registry.scheme import HTTP_SCHEMES, scheme_of

if TYPE_CHECKING:
    from registry.registry import Registry

REGISTRY_FOLDER = "registry"
_TOKEN, _BLOBS, _BLOBS_OF_FOLDER = "registry.cli.token", "registry.cli.blobs", "registry.cli.blobs-of-folder"

Command = Callable[..., None]
Place = Path | str
"""A folder, or an address as text."""


class PlaceType(HomePath):
    """A folder, or the address of a registry."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # type: ignore[override]
        """An address stays text; a path is checked as click does."""
        return value if scheme_of(value) is not None else super().convert(value, param, ctx)


def _keep(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Keeps an option for `open_given`, so that not every command has to pass it on."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        ctx.meta[key] = value

    return keep


def _keep_blobs(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """As `_keep`; what the environment says belongs to the registry in PostgreSQL, not to a folder named by hand."""
    is_named = ctx.get_parameter_source("blobs") is not ParameterSource.ENVIRONMENT
    ctx.meta[_BLOBS], ctx.meta[_BLOBS_OF_FOLDER] = value, value if is_named else None


def place_options(command: Command) -> Command:
    """Add --home, --registry, --token and --blobs: where the registry is, and what it is asked with."""
    for option in (blobs_option, token_option, registry_option, home_option):
        command = option(command)
    return command


registry_option = click.option(
    "--registry",
    type=PlaceType(file_okay=False),
    envvar="LORAPLEX_REGISTRY",
    default=None,
    metavar="DIR|URL",
    help="The registry: a folder, http://HOST:PORT or postgresql://...  [default: HOME/registry]",
)
token_option = click.option(
    "--token",
    envvar="LORAPLEX_TOKEN",
    default=None,
    expose_value=False,
    callback=_keep(_TOKEN),
    help="What a registry over HTTP is asked with.",
)
blobs_option = click.option(
    "--blobs",
    envvar="LORAPLEX_BLOBS",
    default=None,
    metavar="DIR|URL",
    expose_value=False,
    callback=_keep_blobs,
    help="Where the files of a registry in PostgreSQL are: a folder, or s3://bucket/prefix.",
)


def open_place(home: Path, registry: Place | None, *, create: bool = False) -> Registry:
    """The registry that the options of `place_options` name. Raises errors of the registry."""
    return open_given(registry or home / REGISTRY_FOLDER, create=create)


def open_given(place: Place, *, create: bool = True) -> Registry:
    """The registry at this place, asked with the token that the running command was given."""
    ctx = click.get_current_context(silent=True)
    meta = {} if ctx is None else ctx.meta
    if scheme_of(place) in HTTP_SCHEMES:
        return open_registry(place, token=meta.get(_TOKEN), progress=progress_of(ctx))
    return open_registry(place, blobs=given_blobs(meta, place), create=create)


def given_blobs(meta: Mapping[str, Any], place: Place) -> str | None:
    """What --blobs says of the registry at this place; `meta` is that of the running command."""
    blobs: str | None = meta.get(_BLOBS_OF_FOLDER if scheme_of(place) is None else _BLOBS)
    return None if scheme_of(place) in HTTP_SCHEMES else blobs


def open_briefly(ctx: click.Context, home: Path, registry: Place | None) -> Registry:
    """As `open_place`, for somebody who waits at a prompt: a registry over HTTP is asked once, and not for long."""
    place = registry or home / REGISTRY_FOLDER
    if scheme_of(place) not in HTTP_SCHEMES:
        return open_registry(place, blobs=given_blobs(ctx.meta, place), create=False)
    return open_remote(str(place), token=ctx.meta.get(_TOKEN), is_patient=False)
