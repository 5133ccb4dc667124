from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import registry
from registry.errors import (
    ConflictError,
    GateError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
)
from registry.policies import AliasPolicy
from tests.registry.adapter_folders import OTHER_FINGERPRINT, base_document, manifest_document

OPERATOR = registry.Principal.operator()
NAME = "acme/sql"
Make = Callable[..., Path]


@pytest.fixture
def two(reg: registry.Registry, make_adapter: Make) -> registry.Registry:
    """Three versions; `prod` is the first."""
    for seed in (1, 2, 3):
        reg.publish(make_adapter(seed=seed), NAME, principal=OPERATOR)
    reg.promote(f"{NAME}@1", "prod", principal=OPERATOR)
    return reg


def split_of(reg: registry.Registry, ref: str = f"{NAME}@prod") -> tuple[int, int | None, int | None]:
    split = reg.resolve_split(ref, principal=OPERATOR)
    assert (split.canary is None) == (split.candidate is None)
    if split.canary is None or split.candidate is None:
        return split.stable.number, None, None
    assert split.candidate.number == split.canary.number
    assert split.candidate.digest == split.canary.digest
    return split.stable.number, split.candidate.number, split.canary.permille


def start(reg: registry.Registry, number: int, permille: int = 50) -> registry.Version | Any:
    return reg.start_canary(f"{NAME}@{number}", "prod", permille=permille, principal=OPERATOR)


def test_a_canary_changes_the_split_and_not_what_the_alias_means(two: registry.Registry) -> None:
    assert split_of(two) == (1, None, None)
    start(two, 2)
    assert split_of(two) == (1, 2, 50)
    assert two.resolve(f"{NAME}@prod", principal=OPERATOR).number == 1
    assert two.aliases(NAME, OPERATOR) == {"prod": 1}
    for other in (NAME, f"{NAME}@1", f"{NAME}@2"):
        assert split_of(two, other)[1:] == (None, None)
    two.change_canary(NAME, "prod", permille=900, principal=OPERATOR)
    assert split_of(two) == (1, 2, 900)
    start(two, 3, 10)
    assert split_of(two) == (1, 3, 10)
    assert [canary.number for canary in two.canaries(NAME, OPERATOR)] == [3]
    two.stop_canary(NAME, "prod", principal=OPERATOR)
    assert split_of(two) == (1, None, None)


def test_promoting_the_candidate_ends_it(two: registry.Registry) -> None:
    start(two, 2)
    move = two.promote_canary(NAME, "prod", principal=OPERATOR, evidence="quiet")
    assert (move.from_number, move.to_number, move.evidence) == (1, 2, "quiet")
    assert split_of(two) == (2, None, None)


def test_every_move_of_the_alias_ends_it(two: registry.Registry) -> None:
    start(two, 2)
    two.promote(f"{NAME}@3", "prod", principal=OPERATOR)
    assert split_of(two) == (3, None, None)
    start(two, 2)
    two.rollback(NAME, "prod", principal=OPERATOR)
    assert split_of(two) == (1, None, None)


def test_a_promotion_that_moves_nothing_or_is_refused_leaves_it(two: registry.Registry) -> None:
    start(two, 2)
    two.promote(f"{NAME}@1", "prod", principal=OPERATOR)
    assert split_of(two) == (1, 2, 50)
    two.set_policy(NAME, "prod", AliasPolicy(approvals=1), principal=OPERATOR)
    with pytest.raises(GateError):
        two.promote_canary(NAME, "prod", principal=OPERATOR)
    assert split_of(two) == (1, 2, 50)
    two.approve(f"{NAME}@2", "prod", principal=OPERATOR)
    two.promote_canary(NAME, "prod", principal=OPERATOR)
    assert split_of(two) == (2, None, None)


def test_what_cannot_be_a_canary(two: registry.Registry, make_adapter: Make) -> None:
    two.register_base(base_document(OTHER_FINGERPRINT, "other"))
    foreign = make_adapter(seed=9, manifest=manifest_document(OTHER_FINGERPRINT))
    two.publish(foreign, NAME, principal=OPERATOR)
    with pytest.raises(ConflictError, match="points at version 1 already"):
        start(two, 1)
    with pytest.raises(ConflictError, match="another base"):
        start(two, 4)
    for permille in (0, -1, 1001):
        with pytest.raises(InvalidValueError):
            start(two, 2, permille)
    with pytest.raises(NotFoundError):
        start(two, 7)
    with pytest.raises(NotFoundError):
        two.start_canary(f"{NAME}@2", "staging", permille=5, principal=OPERATOR)
    with pytest.raises(InvalidNameError):
        two.start_canary(two.resolve(NAME, principal=OPERATOR).digest, "prod", permille=5, principal=OPERATOR)
    assert two.canaries(NAME, OPERATOR) == []
    for act in (
        lambda: two.stop_canary(NAME, "prod", principal=OPERATOR),
        lambda: two.change_canary(NAME, "prod", permille=5, principal=OPERATOR),
        lambda: two.promote_canary(NAME, "prod", principal=OPERATOR),
    ):
        with pytest.raises(NotFoundError):
            act()


def test_roles(two: registry.Registry) -> None:
    publisher, promoter, reader = (
        two.authenticate(two.create_token("acme", role).secret) for role in ("publisher", "promoter", "reader")
    )
    with pytest.raises(PermissionDeniedError):
        two.start_canary(f"{NAME}@2", "prod", permille=5, principal=publisher)
    two.start_canary(f"{NAME}@2", "prod", permille=5, principal=promoter)
    for act in (
        lambda: two.stop_canary(NAME, "prod", principal=publisher),
        lambda: two.change_canary(NAME, "prod", permille=6, principal=publisher),
        lambda: two.promote_canary(NAME, "prod", principal=publisher),
    ):
        with pytest.raises(PermissionDeniedError):
            act()
    assert two.resolve_split(f"{NAME}@prod", principal=reader).canary is not None


def test_its_history_is_in_the_audit_log_and_the_feed(two: registry.Registry) -> None:
    start(two, 2)
    two.change_canary(NAME, "prod", permille=500, principal=OPERATOR)
    start(two, 3)
    two.stop_canary(NAME, "prod", principal=OPERATOR)
    start(two, 2)
    two.promote_canary(NAME, "prod", principal=OPERATOR)
    told = [
        (event.kind, event.document["number"], event.document.get("why"))
        for event in two.events(OPERATOR, after=0).events
        if event.kind.startswith("canary.")
    ]
    assert told == [
        ("canary.started", 2, None),
        ("canary.changed", 2, None),
        ("canary.ended", 2, "replaced"),
        ("canary.started", 3, None),
        ("canary.ended", 3, "stopped"),
        ("canary.started", 2, None),
        ("canary.ended", 2, "promote"),
    ]
    with two._database.reading() as session:
        query = "SELECT action, subject, detail FROM audit_events WHERE action LIKE 'canary%' ORDER BY id"
        rows = session.execute(text(query)).all()
    assert [(row.action.replace("_", "."), json.loads(row.detail)["number"]) for row in rows] == [
        (kind, number) for kind, number, _ in told
    ]
    assert {row.subject for row in rows} == {f"{NAME}@prod"}
    assert two.verify_audit().is_whole


def test_a_split_is_remembered_until_something_changes(two: registry.Registry) -> None:
    start(two, 2)
    first = two.resolve_split(f"{NAME}@prod", principal=OPERATOR)
    assert two.resolve_split(f"{NAME}@prod", principal=OPERATOR) is first
    two.change_canary(NAME, "prod", permille=51, principal=OPERATOR)
    assert split_of(two) == (1, 2, 51)
