"""The commands about adapters: publish, visibility, ls, show, pull, promote, rollback.

They act on a registry of this machine with the operator's rights, or on one over HTTP with a token's. Each prints a
table or sentence for people, or with --json one document for programs. What the registry refuses is one line on stderr
and exit code 1. `loraplex/cli.py` composes them; only what is printed is made elsewhere (`report.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry.cli import report
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_adapter, complete_alias
from registry.cli.options import (
    HomePath,
    RegistryCommand,
    adapter_argument,
    alias_option,
    evidence_option,
    expect_option,
    reference_argument,
    version_argument,
)
from registry.errors import RegistryError
from registry.expected import Expected
from registry.names import AdapterRef, parse_alias, parse_tenant
from registry.page import PAGE_LIMIT
from registry.principal import OPERATOR
from registry.version import AdapterSummary, Canary, Version, Visibility

if TYPE_CHECKING:
    from registry.registry import Registry


@click.command(cls=RegistryCommand)
@click.argument("folder", type=HomePath())
@adapter_argument
@click.option("--public/--private", "is_public", default=None, help="Who may read the adapter.  [new ones: private]")
@click.option(
    "--alias",
    default=None,
    metavar="ALIAS",
    shell_complete=complete_alias,
    help="Promote the version to this alias, such as prod.",
)
@click.option("--base-fingerprint", default=None, metavar="HEX", help="Its base, for a folder without loraplex.json.")
@click.option("--message", "-m", default="", help="A note that is kept with the version.")
@registry_call
def publish(
    call: RegistryCall,
    folder: Path,
    adapter: str,
    *,
    is_public: bool | None,
    alias: str | None,
    base_fingerprint: str | None,
    message: str,
) -> None:
    """Judge the adapter in FOLDER and make it the next version of TENANT/NAME.

    Publishing the same files again gives the version that has them already.
    """
    if alias is not None:
        parse_alias(alias)
    visibility = None if is_public is None else "public" if is_public else "private"
    with call.open_with_bases() as reg:
        outcome = reg.publish_outcome(
            folder,
            adapter,
            principal=OPERATOR,
            base_fingerprint=base_fingerprint,
            visibility=visibility,
            message=message,
        )
        version = outcome.version
        refusal = None if alias is None else _refusal_of(reg, version, alias)
        base = reg.base(version.base_fingerprint)
    moved = alias if refusal is None else None
    if call.as_json:
        report.print_json({"is_new": outcome.is_new, "alias": moved, "version": report.version_document(version)})
    else:
        report.print_publication(outcome, base, moved)
    if refusal is not None:
        name = f"{version.adapter}@{version.number}"
        raise click.ClickException(f"{name} is published, but {alias} was not moved to it. {refusal.message}")


@click.command(cls=RegistryCommand)
@adapter_argument
@click.argument("visibility", type=click.Choice([one.value for one in Visibility]))
@registry_call
def visibility(call: RegistryCall, adapter: str, visibility: str) -> None:
    """Make an adapter private, for its tenant, or public, for everybody with a token.

    It needs the role admin, and is in the audit log and the feed of events.
    """
    with call.open() as reg:
        found = reg.set_visibility(adapter, visibility, OPERATOR)
    call.say({"adapter": adapter, "visibility": found}, f"{adapter} is {found.value}")


@click.command(cls=RegistryCommand)
@click.argument("adapter", metavar="[TENANT[/NAME]]", required=False, shell_complete=complete_adapter)
@registry_call
def ls(call: RegistryCall, adapter: str | None) -> None:
    """List all adapters, those of a tenant, or the versions of one."""
    tenant = None if adapter is None else adapter.removesuffix("/")
    with call.open() as reg:
        if adapter is not None and "/" in str(tenant):
            versions = reg.list_versions(adapter, OPERATOR)
            if call.as_json:
                report.print_json([report.version_document(version, with_manifest=False) for version in versions])
            else:
                pointing = _pointing(reg.aliases(adapter, OPERATOR), reg.canaries(adapter, OPERATOR))
                report.print_versions(versions, pointing)
            return
        summaries = reg.list_adapters(OPERATOR) if tenant is None else _adapters_of(reg, tenant)
        if call.as_json:
            report.print_json(summaries)
        elif tenant is not None and not summaries:
            click.echo(f"No adapters of {tenant} that you may read. See all: loraplex ls")
        else:
            report.print_adapters(summaries, {base.fingerprint: base for base in reg.bases()})


@click.command(cls=RegistryCommand)
@reference_argument
@registry_call
def show(call: RegistryCall, ref: str) -> None:
    """Show an adapter with its versions and aliases, and one version with its files, metrics and lineage.

    The version is a number, an alias or a digest; without one it is the newest.
    """
    with call.open() as reg:
        version = reg.resolve(ref, principal=OPERATOR)
        versions, aliases = reg.list_versions(version.adapter, OPERATOR), reg.aliases(version.adapter, OPERATOR)
        canaries = reg.canaries(version.adapter, OPERATOR)
        histories = {alias: reg.alias_history(version.adapter, alias, OPERATOR) for alias in aliases}
        base = reg.base(version.base_fingerprint)
    if call.as_json:
        report.print_json(
            {
                "adapter": version.adapter,
                "visibility": version.visibility,
                "aliases": aliases,
                "alias_history": histories,
                "canaries": canaries,
                "versions": [report.version_document(listed, with_manifest=False) for listed in versions],
                "version": report.version_document(version),
            }
        )
        return
    if AdapterRef.parse(ref).is_bare:
        report.print_versions(versions, _pointing(aliases, canaries))
        if histories:
            click.echo()
            report.print_histories(histories)
    report.print_version(version, base, _pointing(aliases, canaries))


@click.command(cls=RegistryCommand)
@reference_argument
@click.argument("destination", type=HomePath(), required=False)
@registry_call
def pull(call: RegistryCall, ref: str, destination: Path | None) -> None:
    """Copy a version's files into DESTINATION, each byte checked; all of them appear at once or none does.

    DESTINATION must be new or empty; without one it is ./NAME.
    """
    with call.open() as reg:
        version = reg.resolve(ref, principal=OPERATOR)
        folder = reg.pull(version, destination or Path(version.adapter.rpartition("/")[2]))
    if call.as_json:
        report.print_json({"folder": str(folder), "version": report.version_document(version)})
    else:
        report.print_pull(version, folder)


@click.command(cls=RegistryCommand)
@version_argument
@alias_option
@expect_option
@evidence_option
@registry_call
def promote(call: RegistryCall, ref: str, *, alias: str, expect: Expected, evidence: str) -> None:
    """Point ALIAS at a version; requests for TENANT/NAME@ALIAS use it from then on."""
    with call.open() as reg:
        move = reg.promote(ref, alias, principal=OPERATOR, expected=expect, evidence=evidence)
    call.show(move, report.print_move)


@click.command(cls=RegistryCommand)
@adapter_argument
@alias_option
@expect_option
@evidence_option
@registry_call
def rollback(call: RegistryCall, adapter: str, *, alias: str, expect: Expected, evidence: str) -> None:
    """Point ALIAS back to where it was before its last promotion."""
    with call.open() as reg:
        move = reg.rollback(adapter, alias, principal=OPERATOR, expected=expect, evidence=evidence)
    call.show(move, report.print_move)


def _refusal_of(reg: Registry, version: Version, alias: str) -> RegistryError | None:
    """Why the alias cannot move to what was just published; None: it points there."""
    try:
        reg.promote(f"{version.adapter}@{version.number}", alias, principal=OPERATOR)
    except RegistryError as error:
        return error
    return None


def _adapters_of(reg: Registry, tenant: str) -> list[AdapterSummary]:
    """Every adapter of the tenant that the caller may read, by name. Raises InvalidNameError."""
    parse_tenant(tenant)
    found: list[AdapterSummary] = []
    cursor = None
    while True:
        page = reg.page_adapters(OPERATOR, limit=PAGE_LIMIT, cursor=cursor, tenant=tenant)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


def _pointing(aliases: Mapping[str, int], canaries: Sequence[Canary]) -> dict[int, list[str]]:
    """What points at each version, by number: aliases, and the parts of them that canaries have."""
    pointing: defaultdict[int, list[str]] = defaultdict(list)
    for alias, number in aliases.items():
        pointing[number].append(alias)
    for canary in canaries:
        pointing[canary.number].append(f"{canary.permille / 10:g}% of {canary.alias}")
    return dict(pointing)
