"""What the commands about policies, attestations and canaries print for people."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.text import Text

from registry.attestation import Attestation, AttestationKind
from registry.cli.report import console, table_of, time_text
from registry.policies import AliasPolicy, GateVerdict, MetricRule, PolicyRecord
from registry.printable import printable
from registry.version import Canary


def print_policy(record: PolicyRecord) -> None:
    """One policy, rule by rule."""
    click.echo(f"{record.adapter}@{record.alias}: policy set by {record.set_by} on {time_text(record.set_at)}")
    for rule in _rules_of(record.policy) or ["nothing is required"]:
        click.echo(f"  {printable(rule)}")


def print_policies(records: Sequence[PolicyRecord]) -> None:
    """Several policies."""
    if not records:
        click.echo("No policies yet. Set one: loraplex policy set TENANT/NAME --alias ALIAS FILE")
    for record in records:
        print_policy(record)


def print_gate(verdict: GateVerdict | None, alias: str) -> None:
    """A verdict, check by check."""
    if verdict is None:
        click.echo(f"{alias} has no policy: every version may be promoted")
        return
    outcome = "passes" if verdict.passed else "does not pass"
    click.echo(f"Version {verdict.candidate} {outcome} the policy of {alias}")
    table = table_of("CHECK", "REQUIRED", "FOUND", "PASSED")
    for check in verdict.checks:
        row = (check.name, check.required, check.found)
        table.add_row(*(Text(printable(cell)) for cell in row), "yes" if check.passed else "no")
    console().print(table)
    for check in verdict.failing:
        if check.next_step:
            click.echo(f"Next: {printable(check.next_step)}")


def print_attestation(attestation: Attestation) -> None:
    """One attestation that was just made."""
    subject = printable(attestation.subject)
    what = "approval for" if attestation.kind is AttestationKind.APPROVAL else attestation.kind.value
    click.echo(f"{attestation.adapter}@{attestation.number}: {what} {subject}, {_outcome(attestation)}")


def print_attestations(attestations: Sequence[Attestation]) -> None:
    """All attestations of a version."""
    if not attestations:
        click.echo("Nothing is attested of this version.")
        return
    table = table_of("KIND", "ABOUT", "OUTCOME", "BY", "WHEN", "NOTE")
    for attestation in attestations:
        note = Text(printable(str(attestation.document.get("note", ""))))
        cells = (Text(printable(attestation.subject)), Text(_outcome(attestation)))
        table.add_row(attestation.kind.value, *cells, attestation.actor, time_text(attestation.created_at), note)
    console().print(table)


def print_canary(canary: Canary) -> None:
    """One canary."""
    click.echo(
        f"{canary.adapter}@{canary.alias} gives {canary.permille / 10:g}% of its requests to version {canary.number}"
    )
    click.echo(f"Next: loraplex canary promote {canary.adapter} --alias {canary.alias}")


def print_canaries(canaries: Sequence[Canary]) -> None:
    """The canaries of an adapter."""
    if not canaries:
        click.echo("No canary runs.")
        return
    table = table_of("ALIAS", "VERSION", "PART", "BY", "SINCE")
    for canary in canaries:
        part = f"{canary.permille / 10:g}%"
        table.add_row(canary.alias, str(canary.number), part, canary.actor, time_text(canary.started_at))
    console().print(table)


def _rules_of(policy: AliasPolicy) -> list[str]:
    rules = [_sentence_of(rule) for rule in policy.metrics]
    if policy.probes != "none":
        rules.append("probes in the manifest" + (", and a probe run that passed" if policy.probes == "passed" else ""))
    if policy.scan:
        rules.append("every scanner's newest result passed, at least one")
    if policy.signed:
        rules.append("a signature by a trusted key")
    if policy.base_verified:
        rules.append("a base that the trainer recorded")
    if policy.approvals:
        approvals = (
            "1 approval by a promoter" if policy.approvals == 1 else f"{policy.approvals} approvals by promoters"
        )
        rules.append(approvals)
    if policy.by_others and rules:
        rules.append("what the version's author attested does not count")
    return rules


def _sentence_of(rule: MetricRule) -> str:
    parts = []
    if rule.bound is not None:
        parts.append(f"{'at least' if rule.better == 'higher' else 'at most'} {rule.bound:g}")
    if rule.margin is not None:
        parts.append(f"better than the incumbent by {rule.margin:g}")
    source = "" if rule.evaluation is None else f" of evaluation {rule.evaluation}"
    return f"metric {rule.metric}{source}: {', '.join(parts)}"


def _outcome(attestation: Attestation) -> str:
    metrics = attestation.document.get("metrics", {})
    figures = [f"{printable(name)} {value:g}" for name, value in sorted(metrics.items())]
    outcome = {True: ["passed"], False: ["failed"], None: []}[attestation.passed]
    return ", ".join(outcome + figures)
