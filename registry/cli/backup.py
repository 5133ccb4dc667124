"""`loraplex registry backup` and `loraplex registry restore`. They run on the registry's own machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from registry.backup import OnBlob
from registry.backup_folder import BackupManifest
from registry.cli import report
from registry.cli.options import HomePath, Place, RegistryCommand, json_option, open_place, place_options
from registry.registry import Registry


@click.command(cls=RegistryCommand)
@click.argument("destination", type=HomePath(file_okay=False), metavar="DEST")
@place_options
@json_option
def backup(destination: Path, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Write the whole registry into the new folder DEST, verified, while it is in use.

    DEST is as secret as the registry itself. `loraplex registry restore` reads it.
    """
    with open_place(home, registry) as reg, _counting("Blobs") as on_blob:
        manifest = _local(reg).backup(destination, on_blob=on_blob)
    if as_json:
        report.print_json(_document("backup", destination, manifest))
        return
    size = report.size_text(manifest.blob_bytes)
    click.echo(f"The registry is in {destination}: {manifest.blobs} blobs, {size}, verified")
    click.echo(f"Next: try it out with loraplex registry restore {destination} --registry DIR")


@click.command(cls=RegistryCommand)
@click.argument("source", type=HomePath(exists=True, file_okay=False), metavar="SRC")
@place_options
@json_option
def restore(source: Path, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Fill a new, empty registry from the backup SRC. All of it is verified before anything is written."""
    with open_place(home, registry, create=True) as reg, _counting("Blobs") as on_blob:
        manifest = _local(reg).restore(source, on_blob=on_blob)
    if as_json:
        report.print_json(_document("restored", source, manifest))
        return
    size = report.size_text(manifest.blob_bytes)
    click.echo(f"The registry of {manifest.made_at} is restored: {manifest.blobs} blobs, {size}, verified")
    where = "" if registry is None else f" --registry {shlex.quote(str(registry))}"
    click.echo(f"Next: loraplex ls{where}")


def _local(reg: Registry) -> Registry:
    """The registry itself; the one that is asked over HTTP cannot do this."""
    if not isinstance(reg, Registry):
        raise click.ClickException("This runs on the registry's own machine: name its folder or database.")
    return reg


def _document(key: str, folder: Path, manifest: BackupManifest) -> dict[str, str | int]:
    counts = {"blobs": manifest.blobs, "blob_bytes": manifest.blob_bytes}
    return {key: str(folder), "made_at": manifest.made_at, **counts}


@contextmanager
def _counting(label: str) -> Iterator[OnBlob | None]:
    """A bar on a terminal; None where nobody would see it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, count: progress.update(task, completed=done, total=count)
