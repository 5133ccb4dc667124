"""Policies, gates, canaries, lineage, cards and diffs: over HTTP the same values and errors as in process."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import registry
from registry.attestation import AttestationKind
from registry.errors import (
    AliasMovedError,
    GateError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
)
from registry.expected import AtSequence
from registry.policies import AliasPolicy, MetricRule, parse_policy
from registry.principal import OPERATOR
from registry.registry import Registry
from tests.registry.adapter_folders import FINGERPRINT, manifest_document
from tests.registry.http.server import serving

SECRET = "operator-" + "s" * 32
NAME = "acme/sql"


@pytest.fixture
def inside(reg_sqlite: Registry, make_adapter: Callable[..., Path]) -> Registry:
    """Two versions, the second trained from the first; `prod` is the first."""
    first = reg_sqlite.publish(make_adapter(seed=1), NAME, principal=OPERATOR)
    manifest = manifest_document(parent=first.digest, metrics={"adapter": {"exact_match": 0.95}})
    reg_sqlite.publish(make_adapter(seed=2, manifest=manifest), NAME, principal=OPERATOR)
    reg_sqlite.promote(f"{NAME}@1", "prod", principal=OPERATOR)
    return reg_sqlite


@pytest.fixture
def url(inside: Registry) -> Iterator[str]:
    with serving(inside, operator_secret=SECRET, token_cache_seconds=0.0) as address:
        yield address


@pytest.fixture
def reg(url: str) -> Iterator[Registry]:
    with registry.open(url, token=SECRET) as outside:
        yield outside


def test_a_policy_and_its_gate(reg: Registry, inside: Registry) -> None:
    policy = AliasPolicy(metrics=(MetricRule("exact_match", "higher", margin=0.01),), approvals=1)
    record = reg.set_policy(NAME, "prod", policy, principal=OPERATOR)
    assert record == inside.policy(NAME, "prod", OPERATOR) == reg.policy(NAME, "prod", OPERATOR)
    assert reg.policies(NAME, OPERATOR) == [record]
    verdict = reg.check_gate(f"{NAME}@2", "prod", OPERATOR)
    assert verdict is not None
    assert [check.passed for check in verdict.checks] == [True, False]
    with pytest.raises(GateError) as caught:
        reg.promote(f"{NAME}@2", "prod", principal=OPERATOR)
    assert (caught.value.adapter, caught.value.alias, caught.value.number) == (NAME, "prod", 2)
    assert caught.value.checks[0]["name"] == "approvals"
    with pytest.raises(GateError) as same:
        inside.promote(f"{NAME}@2", "prod", principal=OPERATOR)
    assert (str(same.value), same.value.checks) == (str(caught.value), caught.value.checks)
    reg.approve(f"{NAME}@2", "prod", principal=OPERATOR)
    move = reg.promote(f"{NAME}@2", "prod", principal=OPERATOR)
    assert move.gate is not None
    assert move == inside.alias_history(NAME, "prod", OPERATOR)[0] == reg.alias_history(NAME, "prod", OPERATOR)[0]
    reg.remove_policy(NAME, "prod", principal=OPERATOR)
    assert reg.check_gate(f"{NAME}@1", "prod", OPERATOR) is None
    with pytest.raises(NotFoundError):
        reg.remove_policy(NAME, "prod", principal=OPERATOR)


def test_attestations(reg: Registry, inside: Registry) -> None:
    made = [
        reg.attest_evaluation(f"{NAME}@2", "golden", {"accuracy": 0.5}, principal=OPERATOR, passed=False, note="ü"),
        reg.attest_probes(f"{NAME}@2", passed=True, principal=OPERATOR),
        reg.attest_scan(NAME, "first", passed=True, principal=OPERATOR),
        reg.approve(f"{NAME}@2", "prod", principal=OPERATOR, note="fine"),
    ]
    assert [attested.kind for attested in made] == list(AttestationKind)[:4]
    assert reg.attestations(NAME, OPERATOR) == made == inside.attestations(f"{NAME}@2", OPERATOR)
    with pytest.raises((InvalidValueError, InvalidNameError)):
        reg.attest_evaluation(f"{NAME}@2", "a b", {"accuracy": 0.5}, principal=OPERATOR)
    with pytest.raises(InvalidValueError):
        reg.attest_evaluation(f"{NAME}@2", "golden", {"accuracy": 1e16}, principal=OPERATOR)
    assert reg.attestations(NAME, OPERATOR) == made


def test_a_canary(reg: Registry, inside: Registry) -> None:
    canary = reg.start_canary(NAME, "prod", permille=50, principal=OPERATOR)
    assert (canary.number, canary.permille) == (2, 50)
    assert reg.canaries(NAME, OPERATOR) == [canary] == inside.canaries(NAME, OPERATOR)
    split = reg.resolve_split(f"{NAME}@prod", principal=OPERATOR)
    assert split == inside.resolve_split(f"{NAME}@prod", principal=OPERATOR)
    assert split.candidate is not None
    assert (split.stable.number, split.candidate.number, split.canary) == (1, 2, canary)
    assert reg.resolve_split(f"{NAME}@2", principal=OPERATOR).canary is None
    assert reg.resolve(f"{NAME}@prod", principal=OPERATOR).number == 1
    assert reg.change_canary(NAME, "prod", permille=999, principal=OPERATOR).permille == 999
    assert reg.stop_canary(NAME, "prod", principal=OPERATOR).permille == 999
    assert reg.canaries(NAME, OPERATOR) == []
    reg.start_canary(f"{NAME}@2", "prod", permille=1, principal=OPERATOR)
    with pytest.raises(AliasMovedError):
        reg.promote_canary(NAME, "prod", principal=OPERATOR, expected=AtSequence(7))
    move = reg.promote_canary(NAME, "prod", principal=OPERATOR, expected=AtSequence(1), evidence="quiet for a day")
    assert (move.to_number, move.evidence) == (2, "quiet for a day")
    assert inside.canaries(NAME, OPERATOR) == []
    for act in (
        lambda: reg.stop_canary(NAME, "prod", principal=OPERATOR),
        lambda: reg.change_canary(NAME, "prod", permille=5, principal=OPERATOR),
        lambda: reg.promote_canary(NAME, "prod", principal=OPERATOR),
    ):
        with pytest.raises(NotFoundError, match="There is no canary 'acme/sql@prod'"):
            act()


def test_insight(reg: Registry, inside: Registry) -> None:
    assert reg.card(f"{NAME}@prod", OPERATOR) == inside.card(f"{NAME}@prod", OPERATOR)
    assert reg.lineage(NAME, OPERATOR) == inside.lineage(NAME, OPERATOR)
    assert len(reg.lineage(NAME, OPERATOR).nodes) == 4
    assert reg.lineage(NAME, OPERATOR, depth=0) == inside.lineage(NAME, OPERATOR, depth=0)
    assert reg.base_lineage(FINGERPRINT[:8], OPERATOR) == inside.base_lineage(FINGERPRINT, OPERATOR)
    assert reg.diff(f"{NAME}@1", NAME, OPERATOR) == inside.diff(f"{NAME}@1", f"{NAME}@2", OPERATOR)
    assert reg.diff(NAME, NAME, OPERATOR, with_weights=False).modules is None


def test_a_tenants_policy(reg: Registry, inside: Registry) -> None:
    assert reg.tenant_policy("acme").unverified_base == "allow"
    assert reg.set_tenant_policy("acme", {"unverified_base": "refuse"}).unverified_base == "refuse"
    assert inside.tenant_policy("acme").unverified_base == "refuse"
    assert reg.set_tenant_policy("acme", {}).unverified_base == "refuse"
    with pytest.raises(InvalidValueError):
        reg.set_tenant_policy("acme", {"unverified": "refuse"})
    foreign = reg.authenticate(reg.create_token("acme", "promoter").secret)
    with pytest.raises(PermissionDeniedError):
        reg.set_tenant_policy("acme", {"unverified_base": "allow"}, principal=foreign)


def test_a_foreign_adapter_and_a_missing_one_are_answered_alike(reg: Registry) -> None:
    reg.create_tenant("globex")
    foreign = reg.authenticate(reg.create_token("globex", "admin").secret)

    def acts(name: str) -> list[Callable[[], Any]]:
        ref = f"{name}@1"
        return [
            lambda: reg.set_policy(name, "prod", parse_policy({}), principal=foreign),
            lambda: reg.policies(name, foreign),
            lambda: reg.check_gate(ref, "prod", foreign),
            lambda: reg.attestations(ref, foreign),
            lambda: reg.attest_scan(ref, "first", passed=True, principal=foreign),
            lambda: reg.approve(ref, "prod", principal=foreign),
            lambda: reg.start_canary(ref, "prod", permille=1, principal=foreign),
            lambda: reg.stop_canary(name, "prod", principal=foreign),
            lambda: reg.promote_canary(name, "prod", principal=foreign),
            lambda: reg.canaries(name, foreign),
            lambda: reg.resolve_split(f"{name}@prod", principal=foreign),
            lambda: reg.card(ref, foreign),
            lambda: reg.lineage(ref, foreign),
            lambda: reg.diff(ref, ref, foreign),
        ]

    for hidden, missing in zip(acts(NAME), acts("acme/xyz"), strict=True):
        with pytest.raises(NotFoundError) as one:
            hidden()
        with pytest.raises(NotFoundError) as two:
            missing()
        assert str(one.value).replace(NAME, "acme/xyz") == str(two.value)


BAD_REQUESTS: list[tuple[str, str, Any, int]] = [
    ("PUT", "/adapters/acme/sql/aliases/prod/policy", {"approvals": 99}, 400),
    ("PUT", "/adapters/acme/sql/aliases/prod/policy", {"unknown": 1}, 400),
    ("PUT", "/adapters/acme/sql/aliases/prod/policy", {"metrics": [{"metric": "a", "better": "higher"}]}, 400),
    ("PUT", "/adapters/acme/sql/aliases/prod/canary", {"permille": 0}, 400),
    ("PUT", "/adapters/acme/sql/aliases/prod/canary", {"permille": 1001}, 400),
    ("PUT", "/adapters/acme/sql/aliases/prod/canary", {"permille": 5, "version": "1"}, 409),
    ("PUT", "/adapters/acme/sql/aliases/beta/canary", {"permille": 5}, 404),
    ("PATCH", "/adapters/acme/sql/aliases/prod/canary", {"permille": 5, "version": "1"}, 400),
    ("POST", "/attestations/evaluations", {"ref": NAME, "name": "a", "metrics": {}}, 400),
    ("POST", "/attestations/evaluations", {"ref": NAME, "name": "a", "metrics": {"a": "x"}}, 400),
    ("POST", "/attestations/scans", {"ref": NAME, "name": "a"}, 400),
    ("GET", "/lineage?ref=acme/sql&depth=33", None, 400),
    ("GET", "/lineage?ref=acme/sql&deep=1", None, 400),
    ("GET", "/diff?before=acme/sql", None, 400),
    ("GET", "/card?ref=acme/sql@9", None, 404),
    ("GET", "/bases/xyz/lineage", None, 400),
]


def test_bad_requests(url: str) -> None:
    for method, path, body, status in BAD_REQUESTS:
        request = urllib.request.Request(f"{url}/registry/v1{path}", method=method)
        request.add_header("authorization", f"Bearer {SECRET}")
        request.add_header("content-type", "application/json")
        data = None if body is None else json.dumps(body).encode()
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, data, timeout=30)
        with caught.value as answer:
            document = json.loads(answer.read())
            assert answer.code == status, (path, document)
            assert document["error"]["message"]
