"""Any sequence of publishes, moves of aliases and deletions does to a registry what it does to a plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import registry
from registry.errors import AliasMovedError, ConflictError, NotFoundError
from registry.expected import ANY, Expected
from tests.registry.adapter_folders import write_adapter
from tests.registry.campaigns.state import OPERATOR

SEEDS = 4
NAMES = st.sampled_from(["acme/a", "acme/b", "other/a"])
ALIASES = st.sampled_from(["prod", "next"])
NUMBERS = st.integers(1, 6)
EXPECTED = st.one_of(st.just(ANY), st.none(), NUMBERS)


@dataclass
class ModelAlias:
    """Version numbers that are in force, the present one last, and the number of moves there ever were.

    An alias that was deleted, or never was, has none in force.
    """

    stack: list[int] = field(default_factory=list)
    moves: int = 0

    @property
    def number(self) -> int | None:
        """Where it points."""
        return self.stack[-1] if self.stack else None

    def before(self, versions: Iterable[int]) -> list[int]:
        """The stack after a rollback; empty where there is nothing to go back to."""
        left = list(self.stack[:-1])
        while left and (left[-1] not in versions or left[-1] == self.stack[-1]):
            left.pop()
        return left


@dataclass
class ModelAdapter:
    """Seeds by version number; the last number that was ever given."""

    versions: dict[int, int] = field(default_factory=dict)
    last_number: int = 0
    aliases: dict[str, ModelAlias] = field(default_factory=dict)

    @property
    def pointing(self) -> dict[str, int]:
        """Numbers by alias, of those that are there."""
        return {alias: known.stack[-1] for alias, known in self.aliases.items() if known.stack}


class RegistryMachine(RuleBasedStateMachine):
    """The registry beside its model. `new_registry` makes a fresh one; `folders` are the adapters, by seed."""

    new_registry: Callable[[], registry.Registry]
    folders: list[Path]

    def __init__(self) -> None:
        super().__init__()
        self.reg = type(self).new_registry()
        self.model: dict[str, ModelAdapter] = {}
        self.ops = 0

    def teardown(self) -> None:
        self.reg.close()

    @initialize()
    def begin(self) -> None:
        assert self.reg.list_adapters(OPERATOR) == []

    @rule(name=NAMES, seed=st.integers(0, SEEDS - 1))
    def publish(self, name: str, seed: int) -> None:
        version = self.reg.publish(self.folders[seed], name, principal=OPERATOR)
        adapter = self.model.setdefault(name, ModelAdapter())
        present = [number for number, known in adapter.versions.items() if known == seed]
        if not present:
            adapter.last_number += 1
            adapter.versions[adapter.last_number] = seed
            present = [adapter.last_number]
        assert version.number == present[0]

    @rule(name=NAMES, number=NUMBERS, alias=ALIASES, expected=EXPECTED)
    def promote(self, name: str, number: int, alias: str, expected: Expected) -> None:
        def act() -> int:
            return self.reg.promote(f"{name}@{number}", alias, principal=OPERATOR, expected=expected).sequence

        adapter = self.model.get(name)
        if adapter is None or number not in adapter.versions:
            with pytest.raises(NotFoundError):
                act()
            return
        known = adapter.aliases.get(alias, ModelAlias())
        actual = known.number
        if expected is not ANY and expected != actual:
            with pytest.raises(AliasMovedError) as caught:
                act()
            assert caught.value.actual == actual
            return
        if actual != number:
            known.stack.append(number)
            known.moves += 1
            adapter.aliases[alias] = known
        assert act() == known.moves

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name: str, alias: str) -> None:
        known = self.model.get(name, ModelAdapter()).aliases.get(alias)
        if known is None or known.number is None:
            with pytest.raises(NotFoundError):
                self.reg.rollback(name, alias, principal=OPERATOR)
        elif not (left := known.before(self.model[name].versions)):
            with pytest.raises(ConflictError):
                self.reg.rollback(name, alias, principal=OPERATOR)
        else:
            known.stack = left
            known.moves += 1
            move = self.reg.rollback(name, alias, principal=OPERATOR)
            assert (move.to_number, move.sequence) == (known.stack[-1], known.moves)

    @rule(name=NAMES, alias=ALIASES, expected=st.one_of(st.just(ANY), NUMBERS))
    def delete_alias(self, name: str, alias: str, expected: Expected) -> None:
        def act() -> registry.AliasMove:
            return self.reg.delete_alias(name, alias, principal=OPERATOR, expected=expected)

        known = self.model.get(name, ModelAdapter()).aliases.get(alias)
        if known is None or known.number is None:
            with pytest.raises(NotFoundError):
                act()
        elif expected not in (ANY, known.number):
            with pytest.raises(AliasMovedError):
                act()
        else:
            known.moves += 1
            move = act()
            assert (move.from_number, move.to_number, move.sequence) == (known.number, None, known.moves)
            known.stack = []

    @rule(name=NAMES, number=NUMBERS, force=st.booleans())
    def delete_version(self, name: str, number: int, force: bool) -> None:
        def act() -> None:
            self.reg.delete_version(f"{name}@{number}", OPERATOR, force=force)

        adapter = self.model.get(name)
        if adapter is None or number not in adapter.versions:
            with pytest.raises(NotFoundError):
                act()
            return
        pointing = set(adapter.pointing.values())
        previous = {known.before(adapter.versions)[-1:] == [number] for known in adapter.aliases.values()}
        if number in pointing or (True in previous and not force):
            with pytest.raises(ConflictError):
                act()
        else:
            act()
            del adapter.versions[number]

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS)
    def resolve(self, name: str, alias: str, number: int) -> None:
        adapter = self.model.get(name, ModelAdapter())
        meant = {
            name: max(adapter.versions, default=None),
            f"{name}@{number}": number if number in adapter.versions else None,
            f"{name}@{alias}": adapter.pointing.get(alias),
        }
        for ref, expected in meant.items():
            if expected is None:
                with pytest.raises(NotFoundError):
                    self.reg.resolve(ref, principal=OPERATOR)
            else:
                assert self.reg.resolve(ref, principal=OPERATOR).number == expected

    @invariant()
    def lists_agree(self) -> None:
        listed = {summary.adapter: summary for summary in self.reg.list_adapters(OPERATOR)}
        assert set(listed) == {name for name, adapter in self.model.items() if adapter.versions}
        for name, adapter in self.model.items():
            if not adapter.versions:
                continue
            newest = max(adapter.versions)
            assert (listed[name].newest_number, dict(listed[name].aliases)) == (newest, adapter.pointing)
            numbers = [version.number for version in self.reg.page_versions(name, OPERATOR, limit=1000).items]
            assert numbers == sorted(adapter.versions, reverse=True)


def run(opened: Callable[[], registry.Registry], folder: Path, *, examples: int, steps: int) -> None:
    folders = [write_adapter(folder / f"seed-{seed}", seed=seed) for seed in range(SEEDS)]

    class Machine(RegistryMachine):
        pass

    Machine.new_registry = staticmethod(opened)
    Machine.folders = folders
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=chosen)


def test_a_registry_does_what_its_model_does(make_registry: Callable[[], registry.Registry], tmp_path: Path) -> None:
    run(make_registry, tmp_path, examples=4, steps=16)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_registry_does_what_its_model_does_for_long(
    make_registry: Callable[[], registry.Registry], tmp_path: Path
) -> None:
    run(make_registry, tmp_path, examples=100, steps=50)
