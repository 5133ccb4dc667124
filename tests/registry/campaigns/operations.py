"""What a worker of a campaign does to a registry, by name; its result is told only after the registry returned it."""

from __future__ import annotations

import faulthandler
import json
import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import registry
from registry.errors import AliasMovedError, CatalogBusyError, NotFoundError, RegistryError
from tests.registry.campaigns.faults import Fault, disarm, operations_seen
from tests.registry.campaigns.hub_commit import hub_commit

OPERATOR = registry.Principal.operator()
LONG_AFTER = timedelta(days=30)
STORM_NAME = "acme/storm"
BUSY = "busy"
"""In a history: an operation that was told to try again, and did nothing."""
DELETIONS = ("delete_alias", "delete_version", "delete_adapter")

T = TypeVar("T")


def publish(reg: registry.Registry, *, folder: str, name: str) -> int:
    return reg.publish(Path(folder), name, principal=OPERATOR).number


def promote(reg: registry.Registry, *, ref: str, alias: str) -> int:
    return reg.promote(ref, alias, principal=OPERATOR).sequence


def rollback(reg: registry.Registry, *, name: str, alias: str) -> int:
    return reg.rollback(name, alias, principal=OPERATOR).sequence


def delete_alias(reg: registry.Registry, *, name: str, alias: str) -> int:
    return reg.delete_alias(name, alias, principal=OPERATOR).sequence


def pull(reg: registry.Registry, *, ref: str, destination: str) -> str:
    return str(reg.pull(reg.resolve(ref, principal=OPERATOR), Path(destination)))


def delete_version(reg: registry.Registry, *, ref: str) -> str:
    reg.delete_version(ref, OPERATOR)
    return ref


def delete_adapter(reg: registry.Registry, *, name: str) -> str:
    reg.delete_adapter(name, OPERATOR)
    return name


def collect_garbage(reg: registry.Registry) -> int:
    """Everything that nothing needs, as if every lease and every time of grace were over."""
    return reg.collect_garbage(grace=timedelta(0), now=datetime.now(UTC) + LONG_AFTER).blobs_deleted


def storm(location: dict[str, Any], *, inputs: list[list[list[str]]], out: str) -> int:
    """A process for each list of lists and in it a thread for each list: all publish and promote on one alias.

    This worker itself opens nothing. The history of child N is in OUT/N.json, or what ended it in OUT/N.txt.
    """
    children = []
    for part, lists in enumerate(inputs):
        child = os.fork()
        if child == 0:
            try:
                _storm_child(location, lists, Path(out) / f"{part}.json")
            except BaseException:  # noqa: BLE001 - a child must never go on as a second worker
                (Path(out) / f"{part}.txt").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * len(children), [statuses, *(path.read_text() for path in Path(out).glob("*.txt"))]
    return len(children)


def _storm_child(location: dict[str, Any], lists: list[list[str]], out: Path) -> None:
    faulthandler.enable()
    with registry.open(**location) as reg, ThreadPoolExecutor(len(lists)) as threads:
        histories = list(threads.map(lambda folders: _publish_and_promote(reg, folders), lists))
    out.write_text(json.dumps([row for history in histories for row in history]))


def _publish_and_promote(reg: registry.Registry, folders: list[str]) -> list[dict[str, Any]]:
    """Publish each folder and point the alias at it, each time expecting what was just read, until it is done.

    Every other one deletes the alias then, if it still points there. Whoever is told that the catalog is busy tries
    again, as it is told to: where processor time is short, 31 others may well take longer than a writer waits.
    """
    history: list[dict[str, Any]] = []
    for turn, folder in enumerate(folders):
        number = _insist(history, publish, reg, folder=folder, name=STORM_NAME)
        has_set = False
        while not has_set:
            read, promotion = _insist(history, _promote_read, reg, number)
            history += [read, promotion]
            has_set = "has_set" in promotion
        if turn % 2 == 0:
            history.append(_insist(history, _delete_alias, reg, number))
    return history


def _insist(history: list[dict[str, Any]], operation: Callable[..., T], *arguments: Any, **named: Any) -> T:
    while True:
        called = time.monotonic_ns()
        try:
            return operation(*arguments, **named)
        except CatalogBusyError:
            history.append({"kind": BUSY, "called": called, "returned": time.monotonic_ns()})


def _promote_read(reg: registry.Registry, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the alias, and point it at the version if it still is where it was read."""
    called = time.monotonic_ns()
    found = _alias(reg)
    read = {"kind": "read", "called": called, "returned": time.monotonic_ns(), "found": found}
    row = {"kind": "cas", "expected": found, "new": number, "called": time.monotonic_ns()}
    outcome: dict[str, Any]
    try:
        reg.promote(f"{STORM_NAME}@{number}", "prod", principal=OPERATOR, expected=found)
        outcome = {"has_set": True}
    except AliasMovedError as error:
        outcome = {"found": error.actual}
    return read, row | outcome | {"returned": time.monotonic_ns()}


def _delete_alias(reg: registry.Registry, number: int) -> dict[str, Any]:
    row = {"kind": "cas", "expected": number, "new": None, "called": time.monotonic_ns()}
    outcome: dict[str, Any]
    try:
        reg.delete_alias(STORM_NAME, "prod", principal=OPERATOR, expected=number)
        outcome = {"has_set": True}
    except AliasMovedError as error:
        outcome = {"found": error.actual}
    except NotFoundError:
        outcome = {"found": None}
    return row | outcome | {"returned": time.monotonic_ns()}


def _alias(reg: registry.Registry) -> int | None:
    try:
        return reg.resolve(f"{STORM_NAME}@prod", principal=OPERATOR).number
    except NotFoundError:
        return None


OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        publish,
        promote,
        rollback,
        delete_alias,
        pull,
        delete_version,
        delete_adapter,
        collect_garbage,
        hub_commit,
    )
}


def perform(location: dict[str, Any], operation: str, arguments: dict[str, Any], *, tell: Callable[..., None]) -> None:
    """Open the registry, perform, tell the result or the registry's error. Other exceptions are bugs and go on."""
    if operation == "storm":
        tell(acknowledged=storm(location, **arguments))
        return
    try:
        with registry.open(**location) as reg:
            tell(acknowledged=OPERATIONS[operation](reg, **arguments))
    except RegistryError as error:
        tell(error=f"{type(error).__name__}: {error}")


def perform_under_fault(
    location: dict[str, Any],
    operation: str,
    arguments: dict[str, Any],
    *,
    fault: Fault,
    served: tuple[str, str] | None,
    tell: Callable[..., None],
) -> None:
    """As `perform`, with the fault armed; then, in the same process, look whether it recovers without a restart.

    While the fault lasts, `served` (a reference and an empty folder) is still resolved and pulled. After the fault the
    operation is done again and must succeed; a deletion may find that it was done.
    """
    fault.arm()
    reg: registry.Registry | None = None
    try:
        reg = registry.open(**location)
        tell(acknowledged=OPERATIONS[operation](reg, **arguments))
    except RegistryError as error:
        tell(error=f"{type(error).__name__}: {error}")
    tell(operations=operations_seen())
    if reg is not None and served is not None:
        tell(served=pull(reg, ref=served[0], destination=served[1]))
    disarm()
    with reg or registry.open(**location) as reg:
        try:
            tell(again=OPERATIONS[operation](reg, **arguments))
        except NotFoundError:
            if operation not in DELETIONS:
                raise
            tell(again="it is gone")
