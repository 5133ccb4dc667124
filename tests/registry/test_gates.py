from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import registry
from registry.attestation import AttestationKind
from registry.errors import GateError, InvalidNameError, InvalidValueError, NotFoundError, PermissionDeniedError
from registry.policies import AliasPolicy, parse_policy, read_policy_text
from tests.registry.adapter_folders import manifest_document, write_adapter

Make = Callable[..., Path]
NAME = "acme/sql"
OPERATOR = registry.Principal.operator()


@pytest.fixture
def put(reg: registry.Registry, make_adapter: Make) -> Callable[..., registry.Version]:
    """Publishes a version with this exact match (None: without metrics), with other weights each time."""
    seeds = iter(range(1, 100))

    def publish(exact_match: float | None, *, principal: registry.Principal = OPERATOR, **changes: Any) -> Any:
        metrics = {"base": {}, "adapter": {} if exact_match is None else {"exact_match": exact_match}}
        folder = make_adapter(seed=next(seeds), manifest=manifest_document(metrics=metrics, **changes))
        return reg.publish(folder, NAME, principal=principal)

    return publish


def principal(reg: registry.Registry, role: str, tenant: str = "acme") -> registry.Principal:
    if tenant not in [listed.name for listed in reg.list_tenants()]:
        reg.create_tenant(tenant)
    return reg.authenticate(reg.create_token(tenant, role).secret)


def policy(reg: registry.Registry, **document: Any) -> None:
    reg.set_policy(NAME, "prod", parse_policy(document), principal=OPERATOR)


def margin(value: float, **more: Any) -> dict[str, Any]:
    return {"metric": "exact_match", "better": "higher", "margin": value} | more


def refused(reg: registry.Registry, number: int, **options: Any) -> dict[str, dict[str, str]]:
    """The failing checks of a promotion that must be refused, and changes nothing."""
    before = reg.aliases(NAME, OPERATOR)
    with pytest.raises(GateError) as caught:
        reg.promote(f"{NAME}@{number}", "prod", principal=OPERATOR, **options)
    assert reg.aliases(NAME, OPERATOR) == before
    assert (caught.value.adapter, caught.value.alias, caught.value.number) == (NAME, "prod", number)
    return {check["name"]: check for check in caught.value.checks}


def promote(reg: registry.Registry, number: int) -> registry.AliasMove:
    return reg.promote(f"{NAME}@{number}", "prod", principal=OPERATOR)


def test_without_a_policy_nothing_is_judged(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    assert reg.check_gate(f"{NAME}@1", "prod", OPERATOR) is None
    assert promote(reg, 1).gate is None


def test_the_verdict_is_kept_check_by_check(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.9)
    policy(reg, metrics=[{"metric": "exact_match", "better": "higher", "bound": 0.8}], probes="present")
    gate = promote(reg, 1).gate
    assert gate is not None
    assert gate.passed
    assert [(check.name, check.required, check.found, check.passed) for check in gate.checks] == [
        ("metric exact_match", "at least 0.8", "0.9", True),
        ("probes", "in the manifest", "1 probe", True),
    ]
    assert (gate.candidate, gate.incumbent) == (1, None)
    assert reg.alias_history(NAME, "prod", OPERATOR)[0].gate == gate


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("better", "bound", "value", "passes"),
    [
        ("higher", 0.8, 0.8, True),
        ("higher", 0.8, 0.7999, False),
        ("lower", 0.8, 0.8, True),
        ("lower", 0.8, 0.8001, False),
        ("higher", -1.0, 0.0, True),
        ("higher", 0.8, None, False),
    ],
)
def test_bounds(
    reg: registry.Registry, put: Callable[..., Any], better: str, bound: float, value: float | None, passes: bool
) -> None:
    put(value)
    policy(reg, metrics=[{"metric": "exact_match", "better": better, "bound": bound}])
    verdict = reg.check_gate(f"{NAME}@1", "prod", OPERATOR)
    assert verdict is not None
    assert verdict.passed is passes
    if not passes:
        assert "metric exact_match" in refused(reg, 1)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("better", "value", "wanted", "passes"),
    [
        ("higher", 0.92, 0.02, True),  # 0.9 + 0.02 is not 0.92 in binary
        ("higher", 0.919, 0.02, False),
        ("higher", 0.9, 0.0, True),
        ("higher", 0.89, 0.0, False),
        ("higher", 0.88, -0.02, True),
        ("lower", 0.88, 0.02, True),
        ("lower", 0.89, 0.02, False),
    ],
)
def test_margins_over_the_incumbent(
    reg: registry.Registry, put: Callable[..., Any], better: str, value: float, wanted: float, passes: bool
) -> None:
    put(0.9)
    promote(reg, 1)
    put(value)
    policy(reg, metrics=[margin(wanted, better=better)])
    if passes:
        gate = promote(reg, 2).gate
        assert gate is not None
        assert gate.incumbent == 1
    else:
        check = refused(reg, 2)["metric exact_match against the incumbent"]
        assert "version 1 has 0.9" in check["required"]
        assert check["found"] == f"{value:g}"


def test_the_incumbent_need_not_beat_itself(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    promote(reg, 1)
    policy(reg, metrics=[margin(0.1)])
    verdict = reg.check_gate(f"{NAME}@1", "prod", OPERATOR)
    assert verdict is not None
    assert [(check.found, check.passed) for check in verdict.checks] == [("it is the incumbent", True)]


def test_a_new_alias_has_no_incumbent(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    policy(reg, metrics=[margin(0.1)])
    gate = promote(reg, 1).gate
    assert gate is not None
    assert gate.checks[0].found == "no incumbent: the alias is new"


def test_an_incumbent_without_the_figure(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(None)
    promote(reg, 1)
    put(0.9)
    policy(reg, metrics=[margin(0.1)])
    assert "version 1 has no such figure" in refused(reg, 2)["metric exact_match against the incumbent"]["found"]
    policy(reg, metrics=[margin(0.1, if_incumbent_lacks="pass")])
    assert promote(reg, 2).to_number == 2


def test_a_candidate_without_the_figure_never_passes(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(None)
    policy(reg, metrics=[margin(0.1, if_incumbent_lacks="pass")])
    assert refused(reg, 1)
    put(None)
    reg.remove_policy(NAME, "prod", principal=OPERATOR)
    promote(reg, 1)
    policy(reg, metrics=[margin(0.1, if_incumbent_lacks="pass")])
    assert refused(reg, 2)


def test_the_newest_evaluation_of_a_name_counts(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.1)
    rule = {"metric": "accuracy", "better": "higher", "bound": 0.9, "evaluation": "golden"}
    policy(reg, metrics=[rule])
    check = refused(reg, 1)["metric accuracy of evaluation golden"]
    assert "loraplex attest evaluation acme/sql@1 --name golden --metric accuracy=VALUE" in check["next_step"]
    reg.attest_evaluation(f"{NAME}@1", "other", {"accuracy": 0.99}, principal=OPERATOR)
    assert refused(reg, 1)
    reg.attest_evaluation(f"{NAME}@1", "golden", {"accuracy": 0.95}, principal=OPERATOR)
    reg.attest_evaluation(f"{NAME}@1", "golden", {"accuracy": 0.5}, principal=OPERATOR)
    assert refused(reg, 1)
    reg.attest_evaluation(f"{NAME}@1", "golden", {"accuracy": 0.95}, principal=OPERATOR)
    assert promote(reg, 1).to_number == 1


@pytest.mark.sqlite_only
def test_an_attested_figure_is_not_the_trainers(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    policy(reg, metrics=[{"metric": "exact_match", "better": "higher", "bound": 0.9}])
    assert refused(reg, 1)["metric exact_match"]["next_step"] == "Train or choose a better version."
    reg.attest_evaluation(f"{NAME}@1", "golden", {"exact_match": 0.99}, principal=OPERATOR)
    assert refused(reg, 1)["metric exact_match"]["next_step"].endswith(
        "This rule reads the trainer's figure; that of evaluation 'golden' counts for rules that name it."
    )


def test_a_margin_of_an_evaluation_is_taken_from_the_evaluations_of_both(
    reg: registry.Registry, put: Callable[..., Any]
) -> None:
    put(0.9)
    put(0.1)
    promote(reg, 1)
    policy(reg, metrics=[margin(0.1, metric="accuracy", evaluation="golden")])
    reg.attest_evaluation(f"{NAME}@2", "golden", {"accuracy": 0.8}, principal=OPERATOR)
    (check,) = refused(reg, 2).values()
    assert "loraplex attest evaluation acme/sql@1" in check["next_step"]
    reg.attest_evaluation(f"{NAME}@1", "golden", {"accuracy": 0.7}, principal=OPERATOR)
    assert promote(reg, 2).to_number == 2


def test_probes_and_scans(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5, probes=[])
    put(0.5)
    policy(reg, probes="present")
    assert set(refused(reg, 1)) == {"probes"}
    policy(reg, probes="passed", scan=True)
    assert set(refused(reg, 2)) == {"probe run", "scan"}
    reg.attest_probes(f"{NAME}@2", passed=False, principal=OPERATOR)
    reg.attest_scan(f"{NAME}@2", "first", passed=True, principal=OPERATOR)
    reg.attest_scan(f"{NAME}@2", "second", passed=False, principal=OPERATOR)
    assert refused(reg, 2)["scan"]["found"] == "failed: second"
    reg.attest_probes(f"{NAME}@2", passed=True, principal=OPERATOR)
    reg.attest_scan(f"{NAME}@2", "second", passed=True, principal=OPERATOR)
    assert promote(reg, 2).to_number == 2


def test_an_unverified_base_does_not_pass(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(has_manifest=False), NAME, principal=OPERATOR)
    policy(reg, base_verified=True)
    assert refused(reg, 1)["base"]["found"] == "not verified"


def test_approvals_are_counted_by_holder(reg: registry.Registry, put: Callable[..., Any]) -> None:
    author, first, second = (principal(reg, role) for role in ("admin", "promoter", "admin"))
    put(0.5, principal=author)
    policy(reg, approvals=2, by_others=True)
    assert refused(reg, 1)["approvals"]["found"] == "0"
    with pytest.raises(PermissionDeniedError, match="somebody else"):
        reg.approve(f"{NAME}@1", "prod", principal=author)
    once = reg.approve(f"{NAME}@1", "prod", principal=first)
    assert reg.approve(f"{NAME}@1", "prod", principal=first) == once
    reg.approve(f"{NAME}@1", "staging", principal=second)
    assert refused(reg, 1)["approvals"]["found"].startswith("1 ")
    reg.approve(f"{NAME}@1", "prod", principal=second)
    assert promote(reg, 1).to_number == 1


def test_an_approval_from_before_the_policy_does_not_let_the_author_through(
    reg: registry.Registry, put: Callable[..., Any]
) -> None:
    author = principal(reg, "admin")
    put(0.5, principal=author)
    reg.approve(f"{NAME}@1", "prod", principal=author)
    policy(reg, approvals=1, by_others=True)
    assert refused(reg, 1)["approvals"]["found"] == "0"
    policy(reg, approvals=1)
    assert promote(reg, 1).to_number == 1


def test_evidence_of_the_author_does_not_count_where_others_are_wanted(
    reg: registry.Registry, put: Callable[..., Any]
) -> None:
    author, other = principal(reg, "publisher"), principal(reg, "publisher")
    put(0.5, principal=author)
    policy(reg, scan=True, by_others=True)
    reg.attest_scan(f"{NAME}@1", "mine", passed=True, principal=author)
    assert refused(reg, 1)["scan"]["found"] == "none"
    reg.attest_scan(f"{NAME}@1", "theirs", passed=True, principal=other)
    assert promote(reg, 1).to_number == 1


def test_approvals_of_a_revoked_token_do_not_count(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    approver = principal(reg, "promoter")
    reg.approve(f"{NAME}@1", "prod", principal=approver)
    policy(reg, approvals=1)
    assert approver.token_id is not None
    reg.revoke_token(approver.token_id)
    assert refused(reg, 1)["approvals"]["found"] == "0"


def test_a_token_and_the_one_that_replaced_it_are_one_holder(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    old, new = principal(reg, "promoter"), principal(reg, "promoter")
    for approver in (old, new):
        reg.approve(f"{NAME}@1", "prod", principal=approver)
    with reg._database.writing() as session:
        session.execute(
            text("UPDATE tokens SET replaced_by = :new WHERE id = :old"), {"new": new.token_id, "old": old.token_id}
        )
    policy(reg, approvals=2)
    assert refused(reg, 1)["approvals"]["found"].startswith("1 ")
    policy(reg, approvals=1)
    assert promote(reg, 1).to_number == 1


def test_a_rollback_is_never_held_up(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    put(0.9)
    promote(reg, 1)
    promote(reg, 2)
    policy(reg, metrics=[{"metric": "exact_match", "better": "higher", "bound": 0.99}], approvals=3)
    move = reg.rollback(NAME, "prod", principal=OPERATOR)
    assert (move.to_number, move.gate) == (1, None)


def test_a_refused_promotion_is_remembered(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    policy(reg, approvals=1)
    refused(reg, 1)
    with reg._database.reading() as session:
        rows = session.execute(text("SELECT subject, detail FROM audit_events WHERE action = 'promote_refused'")).all()
    assert [(subject, json.loads(detail)) for subject, detail in rows] == [
        ("acme/sql@prod", {"failing": "approvals", "number": 1})
    ]
    (event,) = [event for event in reg.events(OPERATOR, after=0).events if event.kind == "alias.refused"]
    assert event.document["failing"] == ["approvals"]


def test_the_expectation_is_compared_before_the_gate(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    policy(reg, approvals=1)
    with pytest.raises(registry.AliasMovedError):
        reg.promote(f"{NAME}@1", "prod", principal=OPERATOR, expected=7)


@pytest.mark.parametrize(
    "document",
    [
        {"approvals": -1},
        {"approvals": 17},
        {"approvals": True},
        {"unknown": 1},
        {"probes": "maybe"},
        {"metrics": [{"metric": "a", "better": "higher"}]},
        {"metrics": [{"metric": "a", "better": "higher", "bound": 1, "limit": 2}]},
        {"metrics": [{"metric": "a", "better": "best", "bound": 1}]},
        {"metrics": [{"metric": "", "better": "higher", "bound": 1}]},
        {"metrics": [{"metric": "a\n", "better": "higher", "bound": 1}]},
        {"metrics": [{"metric": "a\ud800", "better": "higher", "bound": 1}]},
        {"metrics": [{"metric": "a", "better": "higher", "bound": float("nan")}]},
        {"metrics": [{"metric": "a", "better": "higher", "bound": 1e300}]},
        {"metrics": [{"metric": "a", "better": "higher", "bound": 1}] * 2},
        {"metrics": [{"metric": f"m{number}", "better": "higher", "bound": 1} for number in range(33)]},
        [],
    ],
)
def test_policies_are_strict(document: Any) -> None:
    with pytest.raises(InvalidValueError):
        parse_policy(document)


def test_policies_are_written_in_toml_or_json() -> None:
    toml = 'approvals = 2\nby_others = true\n[[metrics]]\nmetric = "loss"\nbetter = "lower"\nmargin = 0\n'
    plain = {"approvals": 2, "by_others": True, "metrics": [{"metric": "loss", "better": "lower", "margin": 0}]}
    assert read_policy_text(toml, is_toml=True) == read_policy_text(json.dumps(plain), is_toml=False)
    for text_, is_toml in (("approvals =", True), ("{", False), ("[" * 100_000, False), ("x" * 70_000, True)):
        with pytest.raises(InvalidValueError):
            read_policy_text(text_, is_toml=is_toml)


def test_only_an_admin_sets_a_policy_and_only_readers_see_it(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    with pytest.raises(PermissionDeniedError):
        reg.set_policy(NAME, "prod", AliasPolicy(), principal=principal(reg, "promoter"))
    record = reg.set_policy(NAME, "prod", AliasPolicy(approvals=1), principal=principal(reg, "admin"))
    assert reg.policy(NAME, "prod", principal(reg, "reader")) == record
    foreign = principal(reg, "admin", "globex")
    for act in (
        lambda: reg.set_policy(NAME, "prod", AliasPolicy(), principal=foreign),
        lambda: reg.policies(NAME, foreign),
        lambda: reg.check_gate(f"{NAME}@1", "prod", foreign),
        lambda: reg.approve(f"{NAME}@1", "prod", principal=foreign),
        lambda: reg.attestations(f"{NAME}@1", foreign),
    ):
        with pytest.raises(NotFoundError, match="There is no adapter 'acme/sql'"):
            act()
    with pytest.raises(NotFoundError):
        reg.remove_policy(NAME, "staging", principal=OPERATOR)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("role", "allowed"), [("reader", set()), ("publisher", {"evaluation", "probe", "scan"}), ("promoter", {"all"})]
)
def test_roles_of_attestations(reg: registry.Registry, put: Callable[..., Any], role: str, allowed: set[str]) -> None:
    put(0.5)
    actor = principal(reg, role)
    ref = f"{NAME}@1"
    acts: dict[str, Callable[[], Any]] = {
        "evaluation": lambda: reg.attest_evaluation(ref, "golden", {"a": 1}, principal=actor),
        "probe": lambda: reg.attest_probes(ref, passed=True, principal=actor),
        "scan": lambda: reg.attest_scan(ref, "first", passed=True, principal=actor),
        "approval": lambda: reg.approve(ref, "prod", principal=actor),
    }
    for kind, act in acts.items():
        if kind in allowed or "all" in allowed:
            assert act().kind is AttestationKind(kind)
        else:
            with pytest.raises(PermissionDeniedError):
                act()


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 1e16},
        {"a": True},
        {"a": "1"},
        {"": 1.0},
        {"a\x00": 1.0},
        {"a" * 129: 1.0},
        {f"m{number}": 1.0 for number in range(65)},
    ],
)
def test_metrics_of_evaluations_are_bounded(
    reg: registry.Registry, put: Callable[..., Any], metrics: dict[str, Any]
) -> None:
    put(0.5)
    with pytest.raises(InvalidValueError):
        reg.attest_evaluation(f"{NAME}@1", "golden", metrics, principal=OPERATOR)
    assert reg.attestations(f"{NAME}@1", OPERATOR) == []


@pytest.mark.sqlite_only
@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n", "-a", "a" * 129])
def test_names_of_evaluations_are_strict(reg: registry.Registry, put: Callable[..., Any], name: str) -> None:
    put(0.5)
    with pytest.raises(InvalidNameError):
        reg.attest_evaluation(f"{NAME}@1", name, {"a": 1}, principal=OPERATOR)


def test_attestations_are_listed_and_never_change(reg: registry.Registry, put: Callable[..., Any]) -> None:
    put(0.5)
    made = [
        reg.attest_evaluation(f"{NAME}@1", "golden", {"a": 1}, principal=OPERATOR, note="by hand"),
        reg.approve(NAME, "prod", principal=OPERATOR),
    ]
    assert reg.attestations(NAME, OPERATOR) == made
    assert made[0].document == {"metrics": {"a": 1.0}, "note": "by hand", "role": "admin"}
    with pytest.raises(registry.RegistryError), reg._database.writing() as session:  # the database itself refuses
        session.execute(text("UPDATE attestations SET passed = true"))


def test_two_promotions_at_once_leave_one_consistent_outcome(reg: registry.Registry, put: Callable[..., Any]) -> None:
    """0.92 and 0.93 both beat 0.90 by 0.02; whichever is first, the other one does not beat it by 0.02 any more."""
    put(0.90)
    promote(reg, 1)
    put(0.92)
    put(0.93)
    policy(reg, metrics=[margin(0.02)])
    start = threading.Barrier(2)
    outcomes: dict[int, str] = {}

    def race(number: int) -> None:
        start.wait()
        try:
            promote(reg, number)
            outcomes[number] = "moved"
        except GateError:
            outcomes[number] = "refused"

    threads = [threading.Thread(target=race, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == ["moved", "refused"]
    (winner,) = [number for number, outcome in outcomes.items() if outcome == "moved"]
    history = reg.alias_history(NAME, "prod", OPERATOR)
    assert [move.to_number for move in history] == [winner, 1]
    assert history[0].gate is not None
    assert history[0].gate.incumbent == 1


def _promote_in_a_process(folder: Path, number: int, start: Any, outcomes: Any) -> None:
    with registry.open(folder) as opened:
        start.wait()
        try:
            opened.promote(f"{NAME}@{number}", "prod", principal=OPERATOR)
            outcomes.put((number, "moved"))
        except GateError:
            outcomes.put((number, "refused"))


def test_processes_that_race_move_the_alias_only_upwards(tmp_path: Path, new_registry: Path) -> None:
    """Three processes with a margin of 0.02 over whoever holds the alias: each move beat the one before."""
    shutil.copytree(new_registry, tmp_path / "registry")
    figures = {1: 0.5, 2: 0.53, 3: 0.54, 4: 0.56}
    with registry.open(tmp_path / "registry") as reg:
        for number, figure in figures.items():
            manifest = manifest_document(metrics={"adapter": {"exact_match": figure}})
            folder = write_adapter(tmp_path / f"adapter-{number}", seed=number, manifest=manifest)
            reg.publish(folder, NAME, principal=OPERATOR)
        promote(reg, 1)
        policy(reg, metrics=[margin(0.02)])
        context = multiprocessing.get_context("spawn")
        start, outcomes = context.Barrier(3), context.Queue()
        workers = [
            context.Process(target=_promote_in_a_process, args=(tmp_path / "registry", number, start, outcomes))
            for number in (2, 3, 4)
        ]
        for worker in workers:
            worker.start()
        told = dict(outcomes.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join()
        moves = [move.to_number for move in reversed(reg.alias_history(NAME, "prod", OPERATOR))]
    assert moves[1:]
    assert sorted(moves[1:]) == sorted(number for number, what in told.items() if what == "moved")
    for before, after in itertools.pairwise(moves):
        assert figures[after] >= figures[before] + 0.02 - 1e-9
