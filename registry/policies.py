"""The policy of an alias: what a version must show before the alias may point at it, and the verdict over one version.

A policy is a strict document: an unknown field, a rule without a bound or a metric named twice is an error. It says
nothing about rollbacks, which no policy can hold up.
"""

from __future__ import annotations

import json
import tomllib
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from registry.bounded_text import is_unicode
from registry.decoding import convert, decode
from registry.errors import InvalidValueError

POLICY_BYTES_LIMIT = 64_000
RULES_LIMIT = 32
APPROVALS_LIMIT = 16
FIGURE_LIMIT = 1e15

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+(?![\s\S])")]
_Figure = Annotated[float, msgspec.Meta(ge=-FIGURE_LIMIT, le=FIGURE_LIMIT)]


class MetricRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One metric that a version must reach.

    `bound` is absolute. `margin` compares with the incumbent: how much better the candidate must be (0: not worse; less
    than 0: worse by at most so much). The figure is the trainer's, from the manifest, or where `evaluation` is given
    that of the newest attested evaluation of this name. `if_incumbent_lacks` decides where the incumbent has no figure
    to compare with; where the alias is new there is no incumbent, and the margin is met.
    """

    metric: _Name
    better: Literal["higher", "lower"]
    bound: _Figure | None = None
    margin: _Figure | None = None
    evaluation: _Name | None = None
    if_incumbent_lacks: Literal["fail", "pass"] = "fail"


class AliasPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it must be met.

    `probes`: the manifest has probes; with "passed", also the newest probe attestation passed. `scan`: there is a scan
    attestation, and the newest of each scanner passed. `signed`: a valid signature by a key that the tenant trusts.
    `approvals`: so many different actors with the role promoter or higher; `by_others` leaves out what the version's
    own author attested, approvals and evidence both.
    """

    metrics: Annotated[tuple[MetricRule, ...], msgspec.Meta(max_length=RULES_LIMIT)] = ()
    probes: Literal["none", "present", "passed"] = "none"
    scan: bool = False
    signed: bool = False
    base_verified: bool = False
    approvals: Annotated[int, msgspec.Meta(ge=0, le=APPROVALS_LIMIT)] = 0
    by_others: bool = False


class PolicyRecord(msgspec.Struct, frozen=True):
    """A policy in force: whose it is, and who set it when."""

    adapter: str
    alias: str
    policy: AliasPolicy
    set_by: str
    set_at: datetime


class GateCheck(msgspec.Struct, frozen=True):
    """One requirement, and what was found."""

    name: str
    required: str
    found: str
    passed: bool
    next_step: str = ""


class GateVerdict(msgspec.Struct, frozen=True):
    """How a policy judged a version, against the incumbent of that moment (None: the alias was new)."""

    passed: bool
    candidate: int
    incumbent: int | None
    policy: AliasPolicy
    checks: tuple[GateCheck, ...]
    evaluated_at: datetime

    @property
    def failing(self) -> tuple[GateCheck, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


def parse_policy(document: Any) -> AliasPolicy:
    """A policy from plain values. Raises InvalidValueError."""
    try:
        policy = convert(document, AliasPolicy)
    except msgspec.ValidationError as error:
        raise InvalidValueError("policy", str(error)) from error
    seen: set[tuple[str, str | None]] = set()
    for rule in policy.metrics:
        if rule.bound is None and rule.margin is None:
            raise InvalidValueError("policy", f"metric {rule.metric!r} has neither `bound` nor `margin`")
        if not is_unicode(rule.metric + (rule.evaluation or "")):
            raise InvalidValueError("policy", "a name in it is not Unicode text")
        if (rule.metric, rule.evaluation) in seen:
            raise InvalidValueError("policy", f"metric {rule.metric!r} appears twice")
        seen.add((rule.metric, rule.evaluation))
    return policy


def read_policy_text(text: str, *, is_toml: bool) -> AliasPolicy:
    """A policy as somebody wrote it down, in TOML or JSON. Raises InvalidValueError."""
    if len(text) > POLICY_BYTES_LIMIT:
        raise InvalidValueError("policy", f"it has more than {POLICY_BYTES_LIMIT:,} characters")
    try:
        document = tomllib.loads(text) if is_toml else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError("policy", f"it is not {'TOML' if is_toml else 'JSON'} ({error})") from error
    return parse_policy(document)


def write_policy(policy: AliasPolicy) -> str:
    """The policy as the database keeps it."""
    return msgspec.json.encode(policy, order="sorted").decode()


def read_policy(document: str) -> AliasPolicy:
    """The policy out of the database."""
    return decode(document.encode(), AliasPolicy)


def write_gate(verdict: GateVerdict | None) -> str | None:
    """A verdict as the alias's history keeps it."""
    return None if verdict is None else msgspec.json.encode(verdict, order="sorted").decode()


def read_gate(document: str | None) -> GateVerdict | None:
    """The verdict out of the history."""
    return None if document is None else decode(document.encode(), GateVerdict)
