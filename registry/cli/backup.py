"""`loraplex registry backup` and `loraplex registry restore`. They run on the registry's own machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry.cli import report
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import HomePath, RegistryCommand
from registry.cli.progress import counted

if TYPE_CHECKING:
    from registry.backup_folder import BackupManifest


@click.command(cls=RegistryCommand)
@click.argument("destination", type=HomePath(file_okay=False), metavar="DEST")
@registry_call
def backup(call: RegistryCall, destination: Path) -> None:
    """Write the whole registry into the new folder DEST, verified, while it is in use.

    DEST is as secret as the registry itself. `loraplex registry restore` reads it.
    """
    with call.open_local() as reg, counted("Blobs") as on_blob:
        manifest = reg.backup(destination, on_blob=on_blob)
    if call.as_json:
        report.print_json(_document("backup", destination, manifest))
        return
    size = report.size_text(manifest.blob_bytes)
    click.echo(f"The registry is in {destination}: {manifest.blobs} blobs, {size}, verified")
    click.echo(f"Next: try it out with loraplex registry restore {destination} --registry DIR")


@click.command(cls=RegistryCommand)
@click.argument("source", type=HomePath(exists=True, file_okay=False), metavar="SRC")
@registry_call
def restore(call: RegistryCall, source: Path) -> None:
    """Fill a new, empty registry from the backup SRC. All of it is verified before anything is written."""
    with call.open_local(create=True) as reg, counted("Blobs") as on_blob:
        manifest = reg.restore(source, on_blob=on_blob)
    if call.as_json:
        report.print_json(_document("restored", source, manifest))
        return
    size = report.size_text(manifest.blob_bytes)
    click.echo(f"The registry of {manifest.made_at} is restored: {manifest.blobs} blobs, {size}, verified")
    where = "" if call.place is None else f" --registry {shlex.quote(str(call.place))}"
    click.echo(f"Next: loraplex ls{where}")


def _document(key: str, folder: Path, manifest: BackupManifest) -> dict[str, str | int]:
    counts = {"blobs": manifest.blobs, "blob_bytes": manifest.blob_bytes}
    return {key: str(folder), "made_at": manifest.made_at, **counts}
