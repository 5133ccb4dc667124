"""The commands about the audit log."""

from __future__ import annotations

import click

from registry.audit_entry import ENTRIES_LIMIT
from registry.cli import report_upkeep
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_tenant
from registry.cli.options import RegistryCommand, RegistryGroup


@click.group(cls=RegistryGroup)
def audit() -> None:
    """Read and verify the audit log."""


@audit.command("ls", cls=RegistryCommand)
@click.option("--tenant", default=None, shell_complete=complete_tenant, help="Only this tenant's.")
@click.option("--limit", type=click.IntRange(1, ENTRIES_LIMIT), default=50, show_default=True, help="How many.")
@click.option("--before", type=click.IntRange(1), default=None, help="Only entries with lower ids.")
@registry_call
def list_entries(call: RegistryCall, *, tenant: str | None, limit: int, before: int | None) -> None:
    """List who changed what, newest first."""
    with call.open() as reg:
        entries = reg.audit_entries(tenant=tenant, limit=limit, before=before)
    call.show(entries, report_upkeep.print_audit)


@audit.command("verify", cls=RegistryCommand)
@click.option("--expect", default=None, metavar="HASH", help="A hash that must be in the chain: one kept elsewhere.")
@registry_call
def verify(call: RegistryCall, *, expect: str | None) -> None:
    """Compute the chain of hashes again; exit code 1 where it is broken.

    Keep the printed hash elsewhere, and give it to a later run with --expect: a log that was rewritten as a whole is
    found by nothing else.
    """
    with call.open() as reg:
        verification = reg.verify_audit(expect=expect)
    call.show(verification, report_upkeep.print_verification)
    if not verification.is_whole:
        raise SystemExit(1)
