"""What a worker of a campaign does to a registry, by name; its result is told only after the registry returned it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import registry
from registry.errors import RegistryError
from tests.registry.campaigns.faults import Fault, disarm, operations_seen

OPERATOR = registry.Principal.operator()
LONG_AFTER = timedelta(days=30)


def publish(reg: registry.Registry, *, folder: str, name: str) -> int:
    return reg.publish(Path(folder), name, principal=OPERATOR).number


def promote(reg: registry.Registry, *, ref: str, alias: str) -> int:
    return reg.promote(ref, alias, principal=OPERATOR).to_number


def rollback(reg: registry.Registry, *, name: str, alias: str) -> int:
    return reg.rollback(name, alias, principal=OPERATOR).to_number


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


OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (publish, promote, rollback, pull, delete_version, delete_adapter, collect_garbage)
}


def perform(location: dict[str, Any], operation: str, arguments: dict[str, Any], *, tell: Callable[..., None]) -> None:
    """Open the registry, perform, tell the result or the registry's error. Other exceptions are bugs and go on."""
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
    operation is done again and must succeed.
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
        tell(again=OPERATIONS[operation](reg, **arguments))
