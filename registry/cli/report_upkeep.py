"""What the commands of safekeeping print for people: usage, the audit log, pins, collections, checks, keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import click
from rich.text import Text

from registry.audit_entry import AuditEntry, AuditVerification
from registry.cli.quantities import span_text
from registry.cli.report import console, size_text, table_of, time_text
from registry.fsck_report import FsckReport
from registry.gc_report import GcReport
from registry.lease import Lease, Pin
from registry.printable import printable
from registry.quota_usage import Usage
from registry.retention_rule import RetentionRule
from registry.signing_key import SigningKey, VersionSignature
from registry.task_run import Outcome, TaskRun
from registry.task_state import TaskState
from registry.tenant_policy import TenantPolicy
from registry.upkeep_policy import UpkeepPolicy
from registry.version import Version

NAMES_SHOWN = 20
KEY_DIGITS = 12


def print_usage(usage: Usage) -> None:
    """What a tenant has and may have."""
    bytes_limit = "no limit" if usage.quota_bytes is None else f"of {size_text(usage.quota_bytes)}"
    versions_limit = "no limit" if usage.quota_versions is None else f"of {usage.quota_versions:,}"
    click.echo(f"Tenant {usage.tenant}")
    click.echo(f"  bytes     {size_text(usage.used_bytes)} ({bytes_limit})")
    click.echo(f"  versions  {usage.used_versions:,} ({versions_limit})")


def print_tenant_policy(tenant: str, policy: TenantPolicy) -> None:
    """What a tenant demands of adapters."""
    signature = "must have a trusted signature" if policy.require_signature else "need no signature"
    click.echo(f"Tenant {tenant}: versions that an alias points at {signature}")
    click.echo(f"  adapters whose base nobody recorded: {policy.unverified_base}")


def print_audit(entries: Sequence[AuditEntry]) -> None:
    """Entries of the audit log, newest first."""
    rows = table_of("ID", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAIL")
    for entry in entries:
        detail = "" if not entry.detail else json.dumps(entry.detail, sort_keys=True)
        who, subject = Text(printable(entry.actor)), Text(printable(entry.subject))
        rows.add_row(str(entry.id), time_text(entry.at), who, entry.action, subject, Text(printable(detail)))
    console().print(rows)


def print_verification(verification: AuditVerification) -> None:
    """Whether the chain is whole."""
    if verification.is_whole:
        pruned = f", after {verification.pruned_rows} that were pruned" if verification.pruned_rows else ""
        click.echo(f"The audit log is whole: {verification.rows} rows{pruned}")
        click.echo(f"  newest    {verification.row_hash}")
        click.echo(
            "Keep this hash elsewhere, and check that it is still in the log: loraplex audit verify --expect HASH"
        )
        return
    for fault in verification.faults[:NAMES_SHOWN]:
        click.echo(f"Broken: {fault}")
    click.echo(f"The audit log is broken in {len(verification.faults)} places. Compare it with a backup.")


def print_pins(pins: Sequence[Pin], leases: Sequence[Lease]) -> None:
    """What keeps an adapter's versions."""
    if not pins and not leases:
        click.echo("No version is pinned, and no server has one loaded.")
        return
    rows = table_of("VERSION", "KEPT BY", "WHY", "SINCE OR UNTIL")
    for pin in pins:
        rows.add_row(str(pin.number), pin.actor, Text(printable(pin.reason)), time_text(pin.created_at))
    for lease in leases:
        rows.add_row(str(lease.number), Text(printable(lease.holder)), "loaded", time_text(lease.expires_at))
    console().print(rows)


def print_rule(adapter: str, rule: RetentionRule | None) -> None:
    """How long an adapter's versions are kept."""
    if rule is None:
        click.echo(f"Every version of {adapter} is kept")
        return
    last = (
        None
        if rule.keep_last is None
        else ("the last version" if rule.keep_last == 1 else f"the last {rule.keep_last} versions")
    )
    days = None if rule.keep_days is None else f"those of the last {rule.keep_days} days"
    click.echo(f"Of {adapter} are kept {' and '.join(filter(None, (last, days)))}, and what is in use")


def print_collection(outcome: GcReport) -> None:
    """What garbage collection took, or would take."""
    verb = "Would delete" if outcome.is_dry_run else "Deleted"
    click.echo(
        f"{verb} {outcome.versions_deleted} versions by retention rules, and {outcome.blobs_deleted} blobs with "
        f"{size_text(outcome.blob_bytes_deleted)}"
    )
    for name in outcome.versions[:NAMES_SHOWN]:
        click.echo(f"  version   {name}")
    for tenant, freed in sorted(outcome.tenant_bytes_freed.items()):
        click.echo(f"  freed     {size_text(freed)} of tenant {tenant}")


def print_policy(policy: UpkeepPolicy) -> None:
    """What the upkeep does."""
    events, audit = (
        "for ever" if seconds is None else span_text(seconds)
        for seconds in (policy.events_seconds, policy.audit_seconds)
    )
    every, grace = span_text(policy.collect_every_seconds), span_text(policy.grace_seconds)
    click.echo(f"Garbage is collected every {every}, with a grace of {grace}")
    click.echo(f"Events are kept {events}, the audit log {audit}")


def print_tasks(states: Sequence[TaskState], now: datetime) -> None:
    """When the tasks of the upkeep were done, and what came of them."""
    rows = table_of("TASK", "DONE", "TOOK", "DUE", "STATE")
    for state in states:
        took = "-" if state.seconds is None else f"{state.seconds:.1f} s"
        times = (time_text(state.ended_at), took, time_text(state.due_at))
        rows.add_row(state.task, *times, Text(printable(_task_text(state, now))))
    console().print(rows)


def print_runs(runs: Sequence[TaskRun]) -> None:
    """What was done just now."""
    for run in runs:
        if run.outcome is Outcome.BUSY:
            click.echo(f"{run.task:<9} another process is at it")
        elif run.outcome is Outcome.FAILED:
            click.echo(f"{run.task:<9} failed: {printable(run.failure or '')}")
        else:
            click.echo(f"{run.task:<9} done in {run.seconds:.1f} s: {_report_text(run.report)}")


def _task_text(state: TaskState, now: datetime) -> str:
    if state.is_held(now):
        return f"{state.holder} is at it since {time_text(state.started_at)}"
    if state.failures:
        return f"failed {state.failures} times: {state.failure}"
    return "never done" if state.ended_at is None else _report_text(state.report)


def _report_text(counts: dict[str, int] | None) -> str:
    done = [f"{name.replace('_', ' ')} {count:,}" for name, count in (counts or {}).items() if count]
    return ", ".join(done) or "nothing to do"


def print_check(outcome: FsckReport) -> None:
    """What fsck found and mended."""
    for line in outcome.repaired:
        click.echo(f"Mended: {line}")
    for fault in outcome.faults:
        hurts = f"; hurts {', '.join(fault.hurts)}" if fault.hurts else ""
        click.echo(printable(f"{fault.kind.value}: {fault.detail}{hurts}"))
    faults = "1 fault" if len(outcome.faults) == 1 else f"{len(outcome.faults)} faults"
    click.echo(f"Read {outcome.blobs} blobs with {size_text(outcome.blob_bytes)}: {faults}")
    if outcome.orphans:
        click.echo(f"{outcome.orphans} blobs with {size_text(outcome.orphan_bytes)} belong to nobody: `loraplex gc`")


def print_keys(keys: Sequence[SigningKey]) -> None:
    """A tenant's keys."""
    if not keys:
        click.echo("No keys yet. Make one: loraplex key generate FILE")
        return
    rows = table_of("KEY", "LABEL", "ALGORITHM", "ADDED", "BY", "REVOKED")
    for key in keys:
        moments = (time_text(key.created_at), key.created_by, time_text(key.revoked_at))
        rows.add_row(key.key_id[:KEY_DIGITS], Text(printable(key.label)), key.algorithm, *moments)
    console().print(rows)


def print_signatures(version: Version, found: Sequence[VersionSignature], valid: Sequence[VersionSignature]) -> None:
    """Who signed a version, and what counts."""
    name = f"{version.adapter}@{version.number}"
    click.echo(f"{name} has {len(valid)} valid signature{'s' * (len(valid) != 1)}")
    click.echo(f"  digest    {version.digest}")
    for signature in found:
        if signature in valid:
            state = f"valid, made {time_text(signature.signed_at)}"
        else:
            state = f"does not count: {signature.fault or 'it is by another key'}"
        click.echo(printable(f"  {signature.key_id[:KEY_DIGITS]}  {signature.label}: {state}"))
