"""The commands about what is kept and what goes: delete, move, pin, unpin, pins, retention, gc, fsck."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from registry.cli import report, report_upkeep
from registry.cli.options import Place, RegistryCommand, json_option, open_place, place_options
from registry.cli.quantities import Duration
from registry.errors import InvalidValueError
from registry.gc import GRACE
from registry.names import AdapterRef
from registry.principal import Principal
from registry.registry import Registry
from registry.retention import DAYS_LIMIT, VERSIONS_LIMIT, RetentionRule


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME[@VERSION]")
@click.option("--force", is_flag=True, help="Even while a server has it loaded, or a rollback goes back to it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@place_options
@json_option
def delete(ref: str, *, force: bool, yes: bool, home: Path, registry: Place | None, as_json: bool) -> None:
    """Delete a version, or an adapter with all its versions.

    A version stays while an alias or a tag points at it, a rollback would go back to it, or somebody pinned it. Its
    number is never used again, and an adapter's name for a year. `loraplex gc` frees the bytes.
    """
    is_adapter = AdapterRef.parse(ref).is_bare
    if not yes and not as_json:
        what = f"{ref} with all its versions and aliases" if is_adapter else ref
        click.confirm(f"Delete {what}? There is no way back", abort=True)
    with open_place(home, registry) as reg:
        if is_adapter:
            reg.delete_adapter(ref, Principal.operator())
        else:
            reg.delete_version(ref, Principal.operator(), force=force)
    if as_json:
        report.print_json({"deleted": ref})
    else:
        click.echo(f"{ref} is deleted")


@click.command(cls=RegistryCommand)
@click.argument("old", metavar="TENANT/OLD")
@click.argument("new", metavar="TENANT/NEW")
@place_options
@json_option
def move(old: str, new: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Rename an adapter within its tenant. Its versions and aliases stay; the old name rests for a year."""
    with open_place(home, registry) as reg:
        reg.move_adapter(old, new, Principal.operator())
    if as_json:
        report.print_json({"moved_to": new})
    else:
        click.echo(f"{old} is now {new}")


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@click.option("--reason", required=True, help="Why it must stay.")
@place_options
@json_option
def pin(ref: str, *, reason: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Keep a version, whatever the retention rules say."""
    with open_place(home, registry) as reg:
        made = reg.pin(ref, reason=reason, principal=Principal.operator())
    if as_json:
        report.print_json(made)
    else:
        click.echo(f"{made.adapter}@{made.number} is pinned")


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@place_options
@json_option
def unpin(ref: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Keep a version no longer."""
    with open_place(home, registry) as reg:
        gone = reg.unpin(ref, principal=Principal.operator())
    if as_json:
        report.print_json(gone)
    else:
        click.echo(f"{gone.adapter}@{gone.number} is not pinned any more")


@click.command(cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@place_options
@json_option
def pins(adapter: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """List an adapter's pins, and the servers that have its versions loaded."""
    with open_place(home, registry) as reg:
        pinned, leased = reg.pins(adapter, Principal.operator()), reg.leases(adapter, Principal.operator())
    if as_json:
        report.print_json({"pins": pinned, "leases": leased})
    else:
        report_upkeep.print_pins(pinned, leased)


@click.command(cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.option("--keep-last", type=click.IntRange(1, VERSIONS_LIMIT), default=None, help="Keep the last N versions.")
@click.option("--keep-days", type=click.IntRange(1, DAYS_LIMIT), default=None, help="Keep versions of the last N days.")
@click.option("--keep-all", is_flag=True, help="Keep every version.")
@place_options
@json_option
def retention(
    adapter: str,
    *,
    keep_last: int | None,
    keep_days: int | None,
    keep_all: bool,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Show or set how long an adapter's versions are kept; it takes effect with `loraplex gc`.

    The newest version, what an alias points at or pointed at before, canaries, and what is tagged, pinned or loaded by
    a server are kept in any case.
    """
    is_rule = keep_last is not None or keep_days is not None
    if keep_all and is_rule:
        raise click.UsageError("--keep-all is for an adapter without a rule; leave out the others.")
    with open_place(home, registry) as reg:
        rule = reg.retention(adapter, Principal.operator())
        if keep_all or is_rule:
            wanted = None if keep_all else RetentionRule(keep_last=keep_last, keep_days=keep_days)
            rule = reg.set_retention(adapter, wanted, Principal.operator())
    if as_json:
        report.print_json({"rule": rule})
    else:
        report_upkeep.print_rule(adapter, rule)


@click.command(cls=RegistryCommand)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--grace", type=Duration(), default=GRACE, help="Leave what is younger.  [default: 24h]")
@place_options
@json_option
def gc(*, dry_run: bool, grace: timedelta, home: Path, registry: Place | None, as_json: bool) -> None:
    """Delete what the retention rules do not keep and the files that nothing needs, and free their bytes.

    Publishing may go on meanwhile. What is aliased or was before, a canary, tagged, pinned, loaded by a server, or
    uploaded within the grace period never goes.
    """
    with open_place(home, registry) as reg:
        outcome = local(reg).collect_garbage(grace=grace, dry_run=dry_run)
    report.show(outcome, report_upkeep.print_collection, as_json=as_json)


@click.command(cls=RegistryCommand)
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing anything.")
@place_options
@json_option
def fsck(*, repair: bool, home: Path, registry: Place | None, as_json: bool) -> None:
    """Read every byte of every version, and check the catalog; exit code 1 where something is wrong.

    A damaged or missing file comes back by publishing the same adapter again, or from a backup.
    """
    with open_place(home, registry) as reg, report_upkeep.counted("checking blobs") as on_blob:
        outcome = local(reg).fsck(repair=repair, on_blob=on_blob)
    report.show(outcome, report_upkeep.print_check, as_json=as_json)
    if not outcome.is_sound:
        raise SystemExit(1)


def local(reg: Registry) -> Registry:
    """The registry, if this machine has its storage at hand. Raises InvalidValueError."""
    if not isinstance(reg, Registry):
        raise InvalidValueError(
            "registry", "this needs the registry's own storage: run it where the registry is, with --registry DIR"
        )
    return reg
