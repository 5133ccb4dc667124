"""What a worker of a campaign does to a registry, by name; its result is told only after the registry returned it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import registry
from registry.errors import RegistryError

OPERATOR = registry.Principal.operator()


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


OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (publish, promote, rollback, pull, delete_version, delete_adapter)
}


def perform(location: dict[str, Any], operation: str, arguments: dict[str, Any], *, tell: Callable[..., None]) -> None:
    """Open the registry, perform, tell the result or the registry's error. Other exceptions are bugs and go on.

    `file_bytes_limit`, an argument of any operation, bounds the size of the files that this process may write: beyond
    it the kernel answers with EFBIG.
    """
    limit = arguments.pop("file_bytes_limit", None)
    with registry.open(location["where"], **location.get("options", {})) as reg:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            result = OPERATIONS[operation](reg, **arguments)
        except RegistryError as error:
            tell(error=f"{type(error).__name__}: {error}")
        else:
            tell(acknowledged=result)
