"""The commands that take versions out of a registry and into another: export and import."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli import report, report_feed
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import HomePath, RegistryCommand, reference_argument
from registry.principal import OPERATOR

TAR, OCI = "tar", "oci"


@click.command("export", cls=RegistryCommand)
@reference_argument
@click.argument("destination", type=HomePath())
@click.option(
    "--format",
    "kind",
    type=click.Choice([TAR, OCI]),
    default=TAR,
    show_default=True,
    help="One file (compressed if its name ends in .gz), or a folder that is an OCI image layout.",
)
@click.option(
    "--all", "all_versions", is_flag=True, help="Every version of the adapter, and where its aliases pointed."
)
@registry_call
def export(call: RegistryCall, ref: str, destination: Path, *, kind: str, all_versions: bool) -> None:
    """Write a version, or with --all an adapter, into DESTINATION, which must be new.

    The same content gives the same bytes. `loraplex import` reads it.
    """
    from registry.archive import export_archive  # the registry's database: only who writes an archive waits for it
    from registry.oci import export_layout

    with call.open() as reg:
        write = export_archive if kind == TAR else export_layout
        index = write(reg, ref, destination, principal=OPERATOR, all_versions=all_versions)
    if call.as_json:
        digests = {str(version.number): version.digest for version in index.versions}
        report.print_json({"destination": str(destination), "adapter": index.adapter, "versions": digests})
    else:
        report_feed.print_export(index, destination)


@click.command("import", cls=RegistryCommand)
@click.argument("source", type=HomePath(exists=True))
@click.option("--as", "name", default=None, metavar="TENANT/NAME", help="Under another name than it had.")
@click.option("--aliases", "with_aliases", is_flag=True, help="Move the aliases to where they pointed.")
@click.option("--bases", "register_bases", is_flag=True, help="Register the bases that the archive describes.")
@registry_call
def import_(call: RegistryCall, source: Path, *, name: str | None, with_aliases: bool, register_bases: bool) -> None:
    """Publish what `loraplex export` has written into SOURCE; each version is judged again.

    What is there already is not added twice.
    """
    if with_aliases and source.is_dir():
        raise click.UsageError("An OCI layout has no history of aliases: --aliases is for archives.")
    from registry.archive import import_archive  # as above
    from registry.oci import import_layout

    with call.open_with_bases() as reg:
        if source.is_dir():
            done = import_layout(reg, source, principal=OPERATOR, name=name, register_bases=register_bases)
        else:
            done = import_archive(
                reg,
                source,
                principal=OPERATOR,
                name=name,
                with_aliases=with_aliases,
                register_bases=register_bases,
            )
    if call.as_json:
        report.print_json(
            {
                "adapter": done.adapter,
                "versions": [
                    {
                        "number": each.publication.version.number,
                        "digest": each.publication.version.digest,
                        "is_new": each.publication.is_new,
                        "number_in_archive": each.number,
                    }
                    for each in done.versions
                ],
                "aliases": done.aliases,
            }
        )
    else:
        report_feed.print_import(done)
