"""The gate of an alias: judges a version by the alias's policy, inside the transaction of the promotion.

The caller has locked the adapter's row, and so do those who set a policy, move the alias or attest something: what is
read here is what holds when the alias moves. Nothing here changes anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.attestation import AttestationKind
from registry.errors import GateError
from registry.models import AliasPolicyRow, AttestationRow, TenantRow, TokenRow, VersionRow
from registry.names import AdapterName
from registry.policies import AliasPolicy, GateCheck, GateVerdict, MetricRule, read_policy
from registry.principal import OPERATOR_ACTOR, Role

Signers = Callable[[Session, VersionRow], Sequence[str]]
"""The labels of the tenant's trusted keys that have signed this version validly (`signatures.py`)."""
TOKEN_CHAIN_LIMIT = 1000


@dataclass(frozen=True)
class _Case:
    """What is judged: the candidate against the incumbent, with what was attested of each, oldest first."""

    session: Session
    name: AdapterName
    alias: str
    policy: AliasPolicy
    candidate: VersionRow
    incumbent: VersionRow | None

    def attested(self, version: VersionRow, kind: AttestationKind) -> list[AttestationRow]:
        """What counts of this kind."""
        query = select(AttestationRow).where(AttestationRow.version_id == version.id, AttestationRow.kind == kind.value)
        rows = list(self.session.scalars(query.order_by(AttestationRow.id)))
        if not self.policy.by_others:
            return rows
        author = holder_of(self.session, version.created_by)
        return [row for row in rows if holder_of(self.session, row.actor) != author]


def judge(
    session: Session,
    name: AdapterName,
    alias: str,
    *,
    adapter_id: int,
    candidate: VersionRow,
    incumbent: VersionRow | None,
    signers: Signers,
    at: datetime,
) -> GateVerdict | None:
    """The verdict over the candidate; None where neither the alias nor the tenant demands anything."""
    row = session.get(AliasPolicyRow, (adapter_id, alias), populate_existing=True)
    is_signature_required = _requires_signature(session, name.tenant)
    if row is None and not is_signature_required:
        return None
    policy = AliasPolicy() if row is None else read_policy(row.document)
    policy = msgspec.structs.replace(policy, signed=policy.signed or is_signature_required)
    case = _Case(session, name, alias, policy, candidate, incumbent)
    checks = tuple(_checks(case, signers))
    return GateVerdict(
        passed=all(check.passed for check in checks),
        candidate=candidate.number,
        incumbent=None if incumbent is None else incumbent.number,
        policy=policy,
        checks=checks,
        evaluated_at=at,
    )


def refuse(name: AdapterName, alias: str, verdict: GateVerdict) -> GateError:
    """The error for a verdict that is not passed."""
    failing = tuple(
        {"name": check.name, "required": check.required, "found": check.found, "next_step": check.next_step}
        for check in verdict.failing
    )
    return GateError(str(name), alias, verdict.candidate, failing)


def holder_of(session: Session, actor: str) -> str:
    """Who stands behind an actor: a token that was rotated acts for the same holder as the one that replaced it."""
    for _ in range(TOKEN_CHAIN_LIMIT):
        token = session.get(TokenRow, actor)
        if token is None or token.replaced_by is None:
            break
        actor = token.replaced_by
    return actor


def _requires_signature(session: Session, tenant: str) -> bool:
    """Whether the tenant's policy demands a signature of whatever an alias points at."""
    document = session.scalar(select(TenantRow.policy).where(TenantRow.name == tenant))
    return document is not None and bool(json.loads(document).get("require_signature", False))


def _checks(case: _Case, signers: Signers) -> Iterator[GateCheck]:
    policy = case.policy
    for rule in policy.metrics:
        yield from _metric(case, rule)
    if policy.probes != "none":
        yield _probes_present(case)
    if policy.probes == "passed":
        yield _probes_passed(case)
    if policy.scan:
        yield _scan(case)
    if policy.signed:
        yield _signature(case, signers)
    if policy.base_verified:
        found = "verified" if case.candidate.base_verified else "not verified"
        step = "Publish the folder as the trainer exported it, with its loraplex.json."
        yield _check("base", "verified", found, case.candidate.base_verified, step)
    if policy.approvals:
        yield _approvals(case)


def _metric(case: _Case, rule: MetricRule) -> Iterator[GateCheck]:
    name = f"metric {rule.metric}" + (f" of evaluation {rule.evaluation}" if rule.evaluation else "")
    figure = _figure(case, case.candidate, rule)
    step = "Train or choose a better version." + _what_does_not_count(case, rule)
    if figure is None:
        step = _how_to_evaluate(case, case.candidate, rule)
    if rule.bound is not None:
        is_met = figure is not None and _is_at_least(rule, figure, rule.bound)
        required = f"{'at least' if rule.better == 'higher' else 'at most'} {rule.bound:g}"
        yield _check(name, required, _shown(figure), is_met, step)
    if rule.margin is not None:
        yield _margin(case, rule, rule.margin, name, figure, step)


def _margin(case: _Case, rule: MetricRule, margin: float, name: str, figure: float | None, step: str) -> GateCheck:
    name += " against the incumbent"
    if case.incumbent is None:
        return _check(name, f"better by {margin:g}", "no incumbent: the alias is new", figure is not None, step)
    held = _figure(case, case.incumbent, rule)
    if case.incumbent.id == case.candidate.id:
        return _check(name, f"better by {margin:g}", "it is the incumbent", True, "")
    incumbent = f"version {case.incumbent.number}"
    if held is None:
        is_met = rule.if_incumbent_lacks == "pass" and figure is not None
        step = step if figure is None else _how_to_evaluate(case, case.incumbent, rule)
        found = f"{_shown(figure)}, and {incumbent} has no such figure"
        return _check(name, f"better than {incumbent} by {margin:g}", found, is_met, step)
    needed = held + margin if rule.better == "higher" else held - margin
    is_met = figure is not None and _is_at_least(rule, figure, needed)
    required = f"{'at least' if rule.better == 'higher' else 'at most'} {needed:g} ({incumbent} has {held:g})"
    return _check(name, required, _shown(figure), is_met, step)


def _is_at_least(rule: MetricRule, figure: float, needed: float) -> bool:
    """Equal figures count as reached, also where adding the margin has rounded."""
    if math.isclose(figure, needed, rel_tol=1e-12, abs_tol=1e-12):
        return True
    return figure > needed if rule.better == "higher" else figure < needed


def _figure(case: _Case, version: VersionRow, rule: MetricRule) -> float | None:
    """The rule's figure of this version: the trainer's, or of the newest evaluation of the rule's name."""
    if rule.evaluation is None:
        figures = _manifest(version).get("metrics") or {}
        return _number((figures.get("adapter") or {}).get(rule.metric))
    named = [row for row in case.attested(version, AttestationKind.EVALUATION) if row.subject == rule.evaluation]
    return _number(json.loads(named[-1].document).get("metrics", {}).get(rule.metric)) if named else None


def _probes_present(case: _Case) -> GateCheck:
    count = len(_manifest(case.candidate).get("probes") or ())
    step = "Publish the folder as the trainer exported it: its manifest has probes."
    return _check("probes", "in the manifest", f"{count} probe{'s' * (count != 1)}", count > 0, step)


def _probes_passed(case: _Case) -> GateCheck:
    rows = case.attested(case.candidate, AttestationKind.PROBE)
    found = "none attested" if not rows else "passed" if rows[-1].passed else f"failed, by {rows[-1].actor}"
    step = f"Run them, then `loraplex attest probes {_ref(case, case.candidate)} --passed`."
    return _check("probe run", "passed", found, bool(rows) and rows[-1].passed is True, step)


def _scan(case: _Case) -> GateCheck:
    newest = {row.subject: row for row in case.attested(case.candidate, AttestationKind.SCAN)}
    failed = sorted(subject for subject, row in newest.items() if row.passed is not True)
    found = f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(sorted(newest))}" if newest else "none"
    step = f"Scan it, then `loraplex attest scan {_ref(case, case.candidate)} --name SCANNER --passed`."
    return _check("scan", "passed", found, bool(newest) and not failed, step)


def _signature(case: _Case, signers: Signers) -> GateCheck:
    labels = sorted(signers(case.session, case.candidate))
    found = f"signed by {', '.join(labels)}" if labels else "no valid signature"
    step = "Sign the version with a key that the tenant trusts."
    return _check("signature", "by a trusted key", found, bool(labels), step)


def _approvals(case: _Case) -> GateCheck:
    """Distinct holders. Approvals of a token that was revoked, and not replaced, count no more."""
    needed = case.policy.approvals
    rows = [row for row in case.attested(case.candidate, AttestationKind.APPROVAL) if row.subject == case.alias]
    holders = sorted({holder_of(case.session, row.actor) for row in rows if _is_valid(case.session, row)})
    others = " other than the author" if case.policy.by_others else ""
    found = f"{len(holders)}" + (f" ({', '.join(holders)})" if holders else "")
    step = f"Ask somebody{others} for `loraplex approve {_ref(case, case.candidate)} --alias {case.alias}`."
    return _check("approvals", f"{needed}{others}", found, len(holders) >= needed, step)


def _is_valid(session: Session, row: AttestationRow) -> bool:
    role = Role(json.loads(row.document).get("role", Role.READER.value))
    if not role.includes(Role.PROMOTER):
        return False
    holder = holder_of(session, row.actor)
    if holder == OPERATOR_ACTOR:
        return True
    token = session.get(TokenRow, holder)
    return token is None or token.revoked_at is None


def _what_does_not_count(case: _Case, rule: MetricRule) -> str:
    """Of a rule about the trainer's figure: that the same metric was attested, which is another figure."""
    if rule.evaluation is not None:
        return ""
    rows = case.attested(case.candidate, AttestationKind.EVALUATION)
    names = sorted({row.subject for row in rows if rule.metric in json.loads(row.document).get("metrics", {})})
    if not names:
        return ""
    return f" This rule reads the trainer's figure; that of evaluation {names[0]!r} counts for rules that name it."


def _how_to_evaluate(case: _Case, version: VersionRow, rule: MetricRule) -> str:
    if rule.evaluation is None:
        return "The trainer measured no such metric: train with validation rows, or ask for an evaluation instead."
    return (
        f"Record it: `loraplex attest evaluation {_ref(case, version)} --name {rule.evaluation} "
        f"--metric {rule.metric}=VALUE`."
    )


def _ref(case: _Case, version: VersionRow) -> str:
    return f"{case.name}@{version.number}"


def _manifest(version: VersionRow) -> dict[str, Any]:
    document: dict[str, Any] = {} if version.manifest is None else json.loads(version.manifest)
    return document


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        figure = float(value)
    except OverflowError:
        return None
    return figure if math.isfinite(figure) else None


def _shown(figure: float | None) -> str:
    return "no such figure" if figure is None else f"{figure:g}"


def _check(name: str, required: str, found: str, passed: bool, next_step: str) -> GateCheck:
    return GateCheck(name, required, found, passed, "" if passed else next_step)
