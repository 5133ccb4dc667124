"""The commands about the audit log."""

from __future__ import annotations

from pathlib import Path

import click

from registry.audit_log import ENTRIES_LIMIT
from registry.cli import report, report_upkeep
from registry.cli.options import Place, RegistryCommand, RegistryGroup, json_option, open_place, place_options


@click.group(cls=RegistryGroup)
def audit() -> None:
    """Read and verify the audit log."""


@audit.command("ls", cls=RegistryCommand)
@click.option("--tenant", default=None, help="Only this tenant's.")
@click.option("--limit", type=click.IntRange(1, ENTRIES_LIMIT), default=50, show_default=True, help="How many.")
@click.option("--before", type=click.IntRange(1), default=None, help="Only entries with lower ids.")
@place_options
@json_option
def list_entries(
    *, tenant: str | None, limit: int, before: int | None, home: Path, registry: Place | None, as_json: bool
) -> None:
    """List who changed what, newest first."""
    with open_place(home, registry) as reg:
        entries = reg.audit_entries(tenant=tenant, limit=limit, before=before)
    report.show(entries, report_upkeep.print_audit, as_json=as_json)


@audit.command("verify", cls=RegistryCommand)
@click.option("--expect", default=None, metavar="HASH", help="A hash that must be in the chain: one kept elsewhere.")
@place_options
@json_option
def verify(*, expect: str | None, home: Path, registry: Place | None, as_json: bool) -> None:
    """Compute the chain of hashes again; exit code 1 where it is broken.

    Keep the printed hash elsewhere, and give it to a later run with --expect: a log that was rewritten as a whole is
    found by nothing else.
    """
    with open_place(home, registry) as reg:
        verification = reg.verify_audit(expect=expect)
    report.show(verification, report_upkeep.print_verification, as_json=as_json)
    if not verification.is_whole:
        raise SystemExit(1)
