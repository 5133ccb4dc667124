"""What a version is needed for: why somebody's deletion is refused, and why a retention rule passes it over.

An alias or a canary points at it, a rollback would take an alias back to it, it is an expert of a mixture, it is tagged
or pinned, or a server has it loaded. These functions read inside of a transaction that others own.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import NeededVersionError
from registry.expert_use import expert_ids, mixture_in_need
from registry.models import AdapterRow, AliasRow, CanaryRow, CommitRow, LeaseRow, PinRow, RefRow, TenantRow, VersionRow
from registry.names import AdapterName
from registry.rollback import moves_by_alias, numbers_moved_to, rollback_target
from registry.trees import TAG


def refuse_needed(
    session: Session,
    name: AdapterName,
    tenant: TenantRow,
    adapter: AdapterRow,
    version: VersionRow,
    now: datetime,
    *,
    force: bool,
) -> None:
    """Raises NeededVersionError. `force` passes over what only a rollback or a server needs."""

    def refuse(needed_by: str, needer: str, why: str, next_step: str) -> None:
        known = {"needed_by": needed_by, "needer": needer}
        raise NeededVersionError(str(name), version.number, **known, why=why, next_step=next_step)

    alias = session.scalar(select(AliasRow.name).where(AliasRow.version_id == version.id).limit(1))
    if alias is not None:
        refuse("alias", alias, f"the alias {alias!r} points at it", "Promote another version first.")
    canary = session.scalar(select(CanaryRow.alias).where(CanaryRow.version_id == version.id).limit(1))
    if canary is not None:
        refuse("canary", canary, f"it is the canary of the alias {canary!r}", "End the canary first.")
    if (mixture := mixture_in_need(session, tenant, [version.id])) is not None:
        refuse("mixture", mixture, f"the mixture {mixture} uses it as an expert", "Delete the mixture first.")
    pin = session.get(PinRow, version.id)
    if pin is not None:
        step = f"Unpin it first: `loraplex unpin {name}@{version.number}`."
        refuse("pin", pin.actor, f"{pin.actor} pinned it ({pin.reason})", step)
    at_commits = select(CommitRow.id).where(CommitRow.version_id == version.id)
    tag = session.scalar(
        select(RefRow.name).where(RefRow.adapter_id == adapter.id, RefRow.kind == TAG, RefRow.commit_id.in_(at_commits))
    )
    if tag is not None:
        refuse("tag", tag, f"the tag {tag!r} points at it", "Delete the tag first.")
    if force:
        return
    if (found := _rollback_to(session, adapter, version)) is not None:
        refuse("rollback", *found)
    lease = select(LeaseRow).where(LeaseRow.version_id == version.id, LeaseRow.expires_at > now)
    holder = session.scalars(lease.order_by(LeaseRow.expires_at.desc()).limit(1)).first()
    if holder is not None:
        until = f"{holder.expires_at:%Y-%m-%d %H:%M UTC}"
        step = "Wait, or delete it with --force."
        refuse("lease", holder.holder, f"{holder.holder} uses it until {until}, or longer", step)


def needed_ids(session: Session, adapter: AdapterRow, now: datetime) -> set[int]:
    """The adapter's versions that are needed, and those that an alias left with its last move."""
    own = select(VersionRow.id).where(VersionRow.adapter_id == adapter.id)
    queries = (
        select(AliasRow.version_id).where(AliasRow.adapter_id == adapter.id),
        select(CanaryRow.version_id).where(CanaryRow.adapter_id == adapter.id),
        select(PinRow.version_id).where(PinRow.version_id.in_(own)),
        select(LeaseRow.version_id).where(LeaseRow.version_id.in_(own), LeaseRow.expires_at > now),
        select(CommitRow.version_id)
        .join(RefRow, RefRow.commit_id == CommitRow.id)
        .where(RefRow.adapter_id == adapter.id, RefRow.kind == TAG),
        own.where(VersionRow.number.in_(_previous_numbers(session, adapter))),
    )
    found = {version_id for query in queries for version_id in session.scalars(query) if version_id is not None}
    return found | expert_ids(session, adapter)


def _rollback_to(session: Session, adapter: AdapterRow, version: VersionRow) -> tuple[str, str, str] | None:
    """The alias whose rollback goes back to the version, why that keeps it, and what to do; None where none does."""
    present = numbers_moved_to(session, adapter.id)
    for alias, moves in moves_by_alias(session, adapter.id).items():
        if rollback_target(moves, present) == version.number:
            left = rollback_target(moves, present - {version.number})
            outcome = "could not be rolled back then" if left is None else f"would go back to version {left} then"
            return (
                alias,
                f"a rollback of the alias {alias!r} goes back to it",
                f"Promote another version first, or delete it with --force: {alias!r} {outcome}.",
            )
    return None


def _previous_numbers(session: Session, adapter: AdapterRow) -> set[int]:
    """Where each alias was before: before its last move, and where a rollback would take it."""
    present = numbers_moved_to(session, adapter.id)
    histories = moves_by_alias(session, adapter.id).values()
    standing = [moves for moves in histories if moves[-1].to_number is not None]  # a deleted alias needs nothing
    previous = {number for moves in standing for number in (moves[-1].from_number, rollback_target(moves, present))}
    return {number for number in previous if number is not None}
