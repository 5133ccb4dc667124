"""Aliases: promotion by compare-and-set, rollback as a stack, deletion, and the history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import registry
from registry.errors import (
    AliasMovedError,
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
    ReadOnlyRevisionError,
)
from registry.expected import AtSequence
from registry.retention_rule import RetentionRule
from tests.registry.adapter_folders import base_document, write_adapter

Publish = Callable[..., registry.Version]
NAME = "acme/text2sql"


@pytest.fixture
def three(publish: Publish) -> list[registry.Version]:
    return [publish() for _ in range(3)]


@pytest.mark.usefixtures("three")
def test_a_promotion_is_kept_with_who_and_why(reg: registry.Registry, operator: registry.Principal) -> None:
    move = reg.promote(f"{NAME}@1", "prod", principal=operator, evidence="exact match 94%")
    assert (move.adapter, move.alias, move.sequence) == (NAME, "prod", 1)
    assert (move.from_number, move.to_number, move.kind) == (None, 1, "promote")
    assert (move.actor, move.evidence) == ("operator", "exact match 94%")
    second = reg.promote(NAME, "prod", principal=operator)
    assert (second.from_number, second.to_number, second.sequence) == (1, 3, 2)
    assert reg.aliases(NAME, operator) == {"prod": 3}
    assert reg.alias_history(NAME, "prod", operator) == [second, move]


@pytest.mark.usefixtures("three")
def test_promoting_where_it_points_changes_nothing(reg: registry.Registry, operator: registry.Principal) -> None:
    first = reg.promote(f"{NAME}@2", "prod", principal=operator)
    assert reg.promote(f"{NAME}@2", "prod", principal=operator, evidence="again") == first
    assert len(reg.alias_history(NAME, "prod", operator)) == 1


@pytest.mark.usefixtures("three")
def test_compare_and_set(reg: registry.Registry, operator: registry.Principal) -> None:
    reg.promote(f"{NAME}@1", "prod", principal=operator, expected=None)
    with pytest.raises(AliasMovedError) as caught:
        reg.promote(f"{NAME}@2", "prod", principal=operator, expected=None)
    assert (caught.value.expected, caught.value.actual) == (None, 1)
    reg.promote(f"{NAME}@2", "prod", principal=operator, expected=1)
    with pytest.raises(AliasMovedError, match="points at version 2, not at what you expected"):
        reg.promote(f"{NAME}@3", "prod", principal=operator, expected=1)
    with pytest.raises(AliasMovedError, match="does not exist"):
        reg.promote(f"{NAME}@3", "staging", principal=operator, expected=1)
    with pytest.raises(AliasMovedError):
        reg.rollback(NAME, "prod", principal=operator, expected=1)
    assert reg.aliases(NAME, operator) == {"prod": 2}
    assert reg.rollback(NAME, "prod", principal=operator, expected=2).to_number == 1


@pytest.mark.usefixtures("three")
def test_an_alias_can_follow_another(reg: registry.Registry, operator: registry.Principal) -> None:
    reg.promote(f"{NAME}@2", "staging", principal=operator)
    reg.promote(f"{NAME}@staging", "prod", principal=operator)
    reg.promote(f"{NAME}@3", "staging", principal=operator)
    assert reg.aliases(NAME, operator) == {"prod": 2, "staging": 3}


@pytest.mark.usefixtures("three")
def test_rollback_undoes_promotions_one_by_one(reg: registry.Registry, operator: registry.Principal) -> None:
    for number in (1, 2, 3):
        reg.promote(f"{NAME}@{number}", "prod", principal=operator)
    assert reg.rollback(NAME, "prod", principal=operator, evidence="worse").to_number == 2
    assert reg.rollback(NAME, "prod", principal=operator).to_number == 1
    with pytest.raises(ConflictError, match="with none before it"):
        reg.rollback(NAME, "prod", principal=operator)
    reg.promote(f"{NAME}@3", "prod", principal=operator)
    assert reg.rollback(NAME, "prod", principal=operator).to_number == 1
    assert reg.resolve(f"{NAME}@prod", principal=operator).number == 1
    kinds = [move.kind.value for move in reg.alias_history(NAME, "prod", operator)]
    assert kinds == ["rollback", "promote", "rollback", "rollback", "promote", "promote", "promote"]


@pytest.mark.usefixtures("three")
def test_what_cannot_be_promoted(reg: registry.Registry, publish: Publish, operator: registry.Principal) -> None:
    other = publish("acme/other")
    with pytest.raises(NotFoundError):
        reg.promote(f"{NAME}@9", "prod", principal=operator)
    with pytest.raises(NotFoundError):
        reg.promote(f"{NAME}@{other.digest}", "prod", principal=operator)
    with pytest.raises(InvalidNameError, match="name the adapter too"):
        reg.promote(other.digest, "prod", principal=operator)
    for alias in ("3", "Prod", "", "a/b"):
        with pytest.raises(InvalidNameError, match="is not an alias"):
            reg.promote(f"{NAME}@1", alias, principal=operator)
    with pytest.raises(InvalidValueError):
        reg.promote(f"{NAME}@1", "prod", principal=operator, evidence="x" * 10_001)
    with pytest.raises(NotFoundError, match="There is no alias"):
        reg.rollback(NAME, "prod", principal=operator)
    with pytest.raises(NotFoundError, match="There is no alias"):
        reg.alias_history(NAME, "prod", operator)
    assert reg.aliases(NAME, operator) == {}


def test_any_sequence_of_moves_keeps_alias_and_history_in_step(tmp_path: Path) -> None:
    with registry.open(tmp_path / "registry") as reg:
        reg.register_base(base_document())
        operator = registry.Principal.operator()
        for seed in range(3):
            reg.publish(write_adapter(tmp_path / f"adapter-{seed}", seed=seed), NAME, principal=operator)
        aliases = iter(f"alias-{number}" for number in range(10_000))

        class Moves(RuleBasedStateMachine):
            """One alias of the shared registry, beside a stack of the promotions in force."""

            def __init__(self) -> None:
                super().__init__()
                self.alias = next(aliases)
                self.stack: list[int] = []
                self.moves = 0

            @rule(number=st.integers(1, 3))
            def promote(self, number: int) -> None:
                reg.promote(f"{NAME}@{number}", self.alias, principal=operator)
                if self.stack[-1:] != [number]:
                    self.stack.append(number)
                    self.moves += 1

            @rule(number=st.integers(1, 3), expected=st.sampled_from([None, 1, 2, 3]))
            def compare_and_set(self, number: int, expected: int | None) -> None:
                actual = self.stack[-1] if self.stack else None
                if expected == actual:
                    reg.promote(f"{NAME}@{number}", self.alias, principal=operator, expected=expected)
                    if number != actual:
                        self.stack.append(number)
                        self.moves += 1
                else:
                    with pytest.raises(AliasMovedError):
                        reg.promote(f"{NAME}@{number}", self.alias, principal=operator, expected=expected)

            @rule()
            def roll_back(self) -> None:
                if len(self.stack) < 2:
                    with pytest.raises((ConflictError, NotFoundError)):
                        reg.rollback(NAME, self.alias, principal=operator)
                else:
                    reg.rollback(NAME, self.alias, principal=operator)
                    self.stack.pop()
                    self.moves += 1

            @invariant()
            def in_step(self) -> None:
                assert reg.aliases(NAME, operator).get(self.alias) == (self.stack[-1] if self.stack else None)
                if self.moves:
                    history = reg.alias_history(NAME, self.alias, operator)
                    assert [move.sequence for move in history] == list(range(self.moves, 0, -1))
                    assert [move.to_number for move in history][1:] == [move.from_number for move in history][:-1]

        run_state_machine_as_test(Moves, settings=settings(max_examples=15, stateful_step_count=12, deadline=None))


@pytest.mark.usefixtures("three")
def test_a_deleted_alias_is_gone_and_its_history_stays(reg: registry.Registry, operator: registry.Principal) -> None:
    reg.promote(f"{NAME}@1", "prod", principal=operator)
    reg.promote(f"{NAME}@2", "prod", principal=operator)
    assert reg.resolve(f"{NAME}@prod", principal=operator).number == 2
    move = reg.delete_alias(NAME, "prod", principal=operator, evidence="the product ended")
    assert (move.kind, move.from_number, move.to_number, move.sequence) == ("delete", 2, None, 3)
    assert (move.actor, move.evidence, move.gate) == ("operator", "the product ended", None)
    assert reg.aliases(NAME, operator) == {}
    assert reg.alias_history(NAME, "prod", operator)[0] == move
    for act in (
        lambda: reg.resolve(f"{NAME}@prod", principal=operator),
        lambda: reg.resolve_split(f"{NAME}@prod", principal=operator),
        lambda: reg.rollback(NAME, "prod", principal=operator),
        lambda: reg.delete_alias(NAME, "prod", principal=operator),
        lambda: reg.promote(f"{NAME}@prod", "staging", principal=operator),
    ):
        with pytest.raises(NotFoundError, match="There is no alias"):
            act()
    event = reg.events(operator, after=0).events[-1]
    assert (event.kind, event.adapter) == ("alias.deleted", NAME)
    assert event.document == {"actor": "operator", "alias": "prod", "from_version": 2, "sequence": 3}
    row = reg.audit_entries(principal=operator)[0]
    assert (row.action, row.subject) == ("delete_alias", f"{NAME}@prod")
    reg.check_integrity()


@pytest.mark.usefixtures("three")
def test_a_deletion_is_a_compare_and_set(reg: registry.Registry, operator: registry.Principal) -> None:
    reg.promote(f"{NAME}@1", "prod", principal=operator)
    for expected in (2, AtSequence(2), AtSequence(0)):
        with pytest.raises(AliasMovedError) as caught:
            reg.delete_alias(NAME, "prod", principal=operator, expected=expected)
        assert caught.value.actual == 1
    with pytest.raises(InvalidValueError, match="what must not exist"):
        reg.delete_alias(NAME, "prod", principal=operator, expected=None)
    with pytest.raises(InvalidValueError, match="evidence"):
        reg.delete_alias(NAME, "prod", principal=operator, evidence="x" * 1_001)
    assert reg.delete_alias(NAME, "prod", principal=operator, expected=AtSequence(1)).sequence == 2
    for expected in (1, AtSequence(1), AtSequence(2)):
        with pytest.raises(AliasMovedError, match="does not exist"):
            reg.promote(f"{NAME}@3", "prod", principal=operator, expected=expected)
    assert reg.promote(f"{NAME}@3", "prod", principal=operator, expected=None).sequence == 3


@pytest.mark.usefixtures("three")
def test_an_alias_that_is_made_anew_begins_anew(reg: registry.Registry, operator: registry.Principal) -> None:
    for number in (1, 2):
        reg.promote(f"{NAME}@{number}", "prod", principal=operator)
    reg.delete_alias(NAME, "prod", principal=operator)
    again = reg.promote(f"{NAME}@2", "prod", principal=operator)
    assert (again.from_number, again.to_number, again.sequence) == (None, 2, 4)
    with pytest.raises(ConflictError, match="with none before it"):
        reg.rollback(NAME, "prod", principal=operator)
    reg.promote(f"{NAME}@3", "prod", principal=operator)
    assert reg.rollback(NAME, "prod", principal=operator).to_number == 2
    kinds = [move.kind.value for move in reversed(reg.alias_history(NAME, "prod", operator))]
    assert kinds == ["promote", "promote", "delete", "promote", "promote", "rollback"]
    reg.check_integrity()


@pytest.mark.usefixtures("three")
def test_nothing_is_kept_for_a_deleted_alias(reg: registry.Registry, operator: registry.Principal) -> None:
    """Neither what it pointed at nor what a rollback would have gone back to; and its canary ends."""
    reg.promote(f"{NAME}@1", "prod", principal=operator)
    reg.promote(f"{NAME}@2", "prod", principal=operator)
    reg.start_canary(f"{NAME}@3", "prod", permille=10, principal=operator)
    reg.set_retention(NAME, RetentionRule(keep_last=1), operator)
    assert reg.collect_garbage().versions == []
    reg.delete_alias(NAME, "prod", principal=operator)
    assert reg.canaries(NAME, operator) == []
    ended = next(event for event in reversed(reg.events(operator, after=0).events) if event.kind == "canary.ended")
    assert ended.document["why"] == "delete"
    reg.delete_version(f"{NAME}@2", operator)
    assert len(reg.collect_garbage().versions) == 1
    assert [version.number for version in reg.list_versions(NAME, operator)] == [3]


@pytest.mark.usefixtures("three")
def test_who_may_delete_an_alias(reg: registry.Registry, operator: registry.Principal) -> None:
    roles = {
        role: reg.authenticate(reg.create_token("acme", role).secret) for role in ("publisher", "promoter", "admin")
    }
    for alias in ("prod", "next"):
        reg.promote(f"{NAME}@1", alias, principal=operator)
    with pytest.raises(PermissionDeniedError, match="delete an alias of"):
        reg.delete_alias(NAME, "next", principal=roles["publisher"])
    assert reg.delete_alias(NAME, "next", principal=roles["promoter"]).actor == roles["promoter"].actor
    reg.set_policy(NAME, "prod", {"base_verified": True}, principal=operator)
    with pytest.raises(PermissionDeniedError, match="delete an alias with a policy of"):
        reg.delete_alias(NAME, "prod", principal=roles["promoter"])
    assert reg.aliases(NAME, operator) == {"prod": 1}
    reg.delete_alias(NAME, "prod", principal=roles["admin"])
    assert reg.policy(NAME, "prod", operator).alias == "prod", "a new one is judged as well"
    reg.create_tenant("globex")
    foreign = reg.authenticate(reg.create_token("globex", "admin").secret)
    with pytest.raises(NotFoundError, match="There is no adapter"):
        reg.delete_alias(NAME, "prod", principal=foreign)


@pytest.mark.usefixtures("three")
def test_the_name_of_a_deleted_alias_is_free_for_a_branch(reg: registry.Registry, operator: registry.Principal) -> None:
    name = registry.AdapterName.parse(NAME)
    reg.promote(f"{NAME}@1", "prod", principal=operator)
    with pytest.raises(ReadOnlyRevisionError):
        reg.refs.delete_branch(name, "prod", operator)
    with pytest.raises(ConflictError, match="it is an alias"):
        reg.refs.create_branch(name, "prod", None, operator)
    reg.delete_alias(NAME, "prod", principal=operator)
    reg.refs.create_branch(name, "prod", None, operator)
    with pytest.raises(ConflictError, match="is the name of a branch already"):
        reg.promote(f"{NAME}@1", "prod", principal=operator)
