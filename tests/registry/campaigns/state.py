"""What a registry holds, as a value that can be compared before and after a fault."""

from __future__ import annotations

from dataclasses import dataclass

import registry
from registry.event import Event
from registry.names import AdapterName
from registry.snapshots import LOG_PAGE_LIMIT

OPERATOR = registry.Principal.operator()


@dataclass(frozen=True)
class AdapterState:
    """The versions of one adapter (number and digest), where its aliases point, and how they came there.

    `commits` are the ids of main's commits, newest first, each with its version.
    """

    versions: tuple[tuple[int, str], ...]
    aliases: tuple[tuple[str, int], ...]
    moves: tuple[tuple[str, int, str, int | None, int | None], ...]
    commits: tuple[tuple[str, int | None], ...]


State = dict[str, AdapterState]


def state_of(reg: registry.Registry) -> State:
    """Everything that the operator sees, asked through the public interface."""
    return {summary.adapter: _adapter_state(reg, summary.adapter) for summary in reg.list_adapters(OPERATOR)}


def check_sound(reg: registry.Registry) -> None:
    """Fsck finds nothing: every blob is there and whole; and each version and each move has its event, once."""
    assert reg.fsck().faults == []
    feed = events_of(reg)
    for name, state in state_of(reg).items():
        told = [event for event in feed if event.adapter == name]
        published = [event.document["version"] for event in told if event.kind == "version.published"]
        assert {number for number, _ in state.versions} <= set(published), name
        assert len(published) == len(set(published)), name
        moved = [
            (event.document["alias"], event.document["sequence"]) for event in told if "sequence" in event.document
        ]
        recorded = [
            (alias, move.sequence)
            for alias in {alias for alias, _ in moved}
            for move in reg.alias_history(name, alias, OPERATOR)
        ]
        assert {alias for alias, _ in state.aliases} <= {alias for alias, _ in moved}, name
        committed = [event.document["commit"] for event in told if event.kind == "commit.created"]
        assert len(committed) == len(set(committed)), name
        assert sorted(moved) == sorted(recorded), name


def events_of(reg: registry.Registry) -> list[Event]:
    """The whole feed."""
    found: list[Event] = []
    cursor = 0
    while True:
        page = reg.events(OPERATOR, after=cursor)
        if not page.events:
            return found
        found += page.events
        cursor = page.cursor


def _adapter_state(reg: registry.Registry, name: str) -> AdapterState:
    aliases = reg.aliases(name, OPERATOR)
    moves = [
        (alias, move.sequence, move.kind.value, move.from_number, move.to_number)
        for alias in sorted(aliases)
        for move in reg.alias_history(name, alias, OPERATOR)
    ]
    versions = tuple((version.number, version.digest) for version in reg.list_versions(name, OPERATOR))
    log = reg.snapshots.log(AdapterName.parse(name), "main", OPERATOR, limit=LOG_PAGE_LIMIT)
    commits = tuple((commit.id, commit.version) for commit in log)
    return AdapterState(versions, tuple(sorted(aliases.items())), tuple(moves), commits)
