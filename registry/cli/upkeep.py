"""The commands about what is kept and what goes: delete, move, pin, unpin, pins, retention, gc, fsck."""

from __future__ import annotations

from datetime import timedelta

import click

from registry.cli import report, report_upkeep
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import RegistryCommand, adapter_argument, reference_argument, version_argument
from registry.cli.progress import counted
from registry.cli.quantities import Duration
from registry.gc_report import GRACE
from registry.names import AdapterRef
from registry.principal import OPERATOR
from registry.retention_rule import DAYS_LIMIT, VERSIONS_LIMIT, RetentionRule


@click.command(cls=RegistryCommand)
@reference_argument
@click.option("--force", is_flag=True, help="Even while a server has it loaded, or a rollback goes back to it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@registry_call
def delete(call: RegistryCall, ref: str, *, force: bool, yes: bool) -> None:
    """Delete a version, or an adapter with all its versions.

    A version stays while an alias or a tag points at it, a rollback would go back to it, or somebody pinned it. Its
    number is never used again, and an adapter's name for a year. `loraplex gc` frees the bytes.
    """
    is_adapter = AdapterRef.parse(ref).is_bare
    if not yes and not call.as_json:
        what = f"{ref} with all its versions and aliases" if is_adapter else ref
        click.confirm(f"Delete {what}? There is no way back", abort=True)
    with call.open() as reg:
        if is_adapter:
            reg.delete_adapter(ref, OPERATOR)
        else:
            reg.delete_version(ref, OPERATOR, force=force)
    call.say({"deleted": ref}, f"{ref} is deleted")


@click.command(cls=RegistryCommand)
@click.argument("old", metavar="TENANT/OLD")
@click.argument("new", metavar="TENANT/NEW")
@registry_call
def move(call: RegistryCall, old: str, new: str) -> None:
    """Rename an adapter within its tenant. Its versions and aliases stay; the old name rests for a year."""
    with call.open() as reg:
        reg.move_adapter(old, new, OPERATOR)
    call.say({"moved_to": new}, f"{old} is now {new}")


@click.command(cls=RegistryCommand)
@version_argument
@click.option("--reason", required=True, help="Why it must stay.")
@registry_call
def pin(call: RegistryCall, ref: str, *, reason: str) -> None:
    """Keep a version, whatever the retention rules say."""
    with call.open() as reg:
        made = reg.pin(ref, reason=reason, principal=OPERATOR)
    call.say(made, f"{made.adapter}@{made.number} is pinned")


@click.command(cls=RegistryCommand)
@version_argument
@registry_call
def unpin(call: RegistryCall, ref: str) -> None:
    """Keep a version no longer."""
    with call.open() as reg:
        gone = reg.unpin(ref, principal=OPERATOR)
    call.say(gone, f"{gone.adapter}@{gone.number} is not pinned any more")


@click.command(cls=RegistryCommand)
@adapter_argument
@registry_call
def pins(call: RegistryCall, adapter: str) -> None:
    """List an adapter's pins, and the servers that have its versions loaded."""
    with call.open() as reg:
        pinned, leased = reg.pins(adapter, OPERATOR), reg.leases(adapter, OPERATOR)
    if call.as_json:
        report.print_json({"pins": pinned, "leases": leased})
    else:
        report_upkeep.print_pins(pinned, leased)


@click.command(cls=RegistryCommand)
@adapter_argument
@click.option("--keep-last", type=click.IntRange(1, VERSIONS_LIMIT), default=None, help="Keep the last N versions.")
@click.option("--keep-days", type=click.IntRange(1, DAYS_LIMIT), default=None, help="Keep versions of the last N days.")
@click.option("--keep-all", is_flag=True, help="Keep every version.")
@registry_call
def retention(
    call: RegistryCall, adapter: str, *, keep_last: int | None, keep_days: int | None, keep_all: bool
) -> None:
    """Show or set how long an adapter's versions are kept; it takes effect with `loraplex gc`.

    The newest version, what an alias points at or pointed at before, canaries, and what is tagged, pinned or loaded by
    a server are kept in any case.
    """
    is_rule = keep_last is not None or keep_days is not None
    if keep_all and is_rule:
        raise click.UsageError("--keep-all is for an adapter without a rule; leave out the others.")
    with call.open() as reg:
        rule = reg.retention(adapter, OPERATOR)
        if keep_all or is_rule:
            wanted = None if keep_all else RetentionRule(keep_last=keep_last, keep_days=keep_days)
            rule = reg.set_retention(adapter, wanted, OPERATOR)
    if call.as_json:
        report.print_json({"rule": rule})
    else:
        report_upkeep.print_rule(adapter, rule)


@click.command(cls=RegistryCommand)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--grace", type=Duration(), default=GRACE, help="Leave what is younger.  [default: 24h]")
@registry_call
def gc(call: RegistryCall, *, dry_run: bool, grace: timedelta) -> None:
    """Delete what the retention rules do not keep and the files that nothing needs, and free their bytes.

    Publishing may go on meanwhile. What is aliased or was before, a canary, tagged, pinned, loaded by a server, or
    uploaded within the grace period never goes.
    """
    with call.open_local() as reg:
        outcome = reg.collect_garbage(grace=grace, dry_run=dry_run)
    call.show(outcome, report_upkeep.print_collection)


@click.command(cls=RegistryCommand)
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing anything.")
@registry_call
def fsck(call: RegistryCall, *, repair: bool) -> None:
    """Read every byte of every version, and check the catalog; exit code 1 where something is wrong.

    A damaged or missing file comes back by publishing the same adapter again, or from a backup.
    """
    with call.open_local() as reg, counted("checking blobs") as on_blob:
        outcome = reg.fsck(repair=repair, on_blob=on_blob)
    call.show(outcome, report_upkeep.print_check)
    if not outcome.is_sound:
        raise SystemExit(1)
