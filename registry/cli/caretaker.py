"""The command that shows, sets and does the registry's upkeep: `loraplex registry upkeep`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from registry.cli import report, report_upkeep
from registry.cli.call import RegistryCall, registry_call
from registry.cli.options import RegistryCommand
from registry.cli.quantities import Duration, DurationOrForever
from registry.principal import OPERATOR
from registry.task_run import Outcome


@click.command(cls=RegistryCommand)
@click.option("--once", is_flag=True, help="Do everything now, due or not; exit code 1 where something failed.")
@click.option("--collect-every", type=Duration(), default=None, help="How often garbage is collected.")
@click.option("--grace", type=Duration(), default=None, help="Garbage collection leaves what is younger.")
@click.option("--keep-events", type=DurationOrForever(), default=None, help="How long events stay in the feed.")
@click.option("--keep-audit", type=DurationOrForever(), default=None, help="How long rows stay in the audit log.")
@registry_call
def upkeep(
    call: RegistryCall,
    *,
    once: bool,
    collect_every: timedelta | None,
    grace: timedelta | None,
    keep_events: timedelta | str | None,
    keep_audit: timedelta | str | None,
) -> None:
    """Show how the registry is looked after, change it, or (--once) do it now.

    Servers do it by themselves: garbage collection with the retention rules, old events, audit rows and names, and
    mirrors that follow. Of several servers, one does it at a time. --once is for a timer of your own.
    """
    given = {
        "collect_every_seconds": collect_every,
        "grace_seconds": grace,
        "events_seconds": keep_events,
        "audit_seconds": keep_audit,
    }
    changes = {name: _seconds(value) for name, value in given.items() if value is not None}
    with call.open_local() as reg:
        care = reg.upkeep
        if changes:
            care.change_policy(changes, OPERATOR)
        runs = care.run_all() if once else []
        policy, states = care.policy(), care.states()
    if call.as_json:
        report.print_json({"policy": policy, "tasks": states, "runs": runs})
    elif once:
        report_upkeep.print_runs(runs)
    else:
        report_upkeep.print_policy(policy)
        report_upkeep.print_tasks(states, datetime.now(UTC))
    if any(run.outcome is Outcome.FAILED for run in runs):
        raise SystemExit(1)


def _seconds(value: timedelta | str) -> int | None:
    return None if isinstance(value, str) else round(value.total_seconds())
