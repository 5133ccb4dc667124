"""What each operation of a campaign changes, all of it, and nothing else: compares the states around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.registry.campaigns.state import State

Effect = Callable[[State, State, dict[str, Any]], bool]


def published(before: State, after: State, arguments: dict[str, Any]) -> bool:
    name = arguments["name"]
    old = before[name].versions if name in before else ()
    number = old[0][0] + 1 if old else 1
    newest, *rest = after[name].versions
    return newest[0] == number and tuple(rest) == old and same_but(before, after, name)


def committed(before: State, after: State, arguments: dict[str, Any]) -> bool:
    """A publish, by a commit on main whose tree the new version is."""
    old, (newest, *rest) = before[arguments["name"]].commits, after[arguments["name"]].commits
    number = after[arguments["name"]].versions[0][0]
    return published(before, after, arguments) and tuple(rest) == old and newest[1] == number


def promoted(before: State, after: State, arguments: dict[str, Any]) -> bool:
    name, _, number = arguments["ref"].partition("@")
    old, new = before[name], after[name]
    was = dict(old.aliases).get(arguments["alias"])
    move = (arguments["alias"], len(old.moves) + 1, "promote", was, int(number))
    aliases = dict(old.aliases) | {arguments["alias"]: int(number)}
    return (
        new.versions == old.versions
        and dict(new.aliases) == aliases
        and new.moves == (move, *old.moves)
        and same_but(before, after, name)
    )


def alias_deleted(before: State, after: State, arguments: dict[str, Any]) -> bool:
    old, new = before[arguments["name"]], after[arguments["name"]]
    kept = {alias: number for alias, number in old.aliases if alias != arguments["alias"]}
    return new.versions == old.versions and dict(new.aliases) == kept and same_but(before, after, arguments["name"])


def version_deleted(before: State, after: State, arguments: dict[str, Any]) -> bool:
    name, _, number = arguments["ref"].partition("@")
    kept = tuple(version for version in before[name].versions if version[0] != int(number))
    return after[name].versions == kept and after[name].moves == before[name].moves and same_but(before, after, name)


def adapter_deleted(before: State, after: State, arguments: dict[str, Any]) -> bool:
    return arguments["name"] not in after and same_but(before, after, arguments["name"])


def nothing_changed(before: State, after: State, arguments: dict[str, Any]) -> bool:
    return before == after


EFFECTS: dict[str, Effect] = {
    "publish": published,
    "hub_commit": committed,
    "promote": promoted,
    "delete_alias": alias_deleted,
    "delete_version": version_deleted,
    "delete_adapter": adapter_deleted,
    "collect_garbage": nothing_changed,
}


def same_but(before: State, after: State, name: str) -> bool:
    return {k: v for k, v in before.items() if k != name} == {k: v for k, v in after.items() if k != name}
