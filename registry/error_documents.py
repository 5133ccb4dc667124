"""Errors as documents, and back: what one side raises, a client on the other side raises again, with its fields.

The code of an error is its class's name without `Error`, in snake case (`AliasMovedError`: `alias_moved`); the fields
are its public attributes. Failures of the disk or the database lose their text and fields where these name local paths.
This module knows no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.errors import CatalogBusyError, IntegrityError, RegistryError, StorageError
from registry.reasons import RejectReason

STORAGE_MESSAGE = "The registry's storage failed. Its log names this request's id."
UNKNOWN_CODE = "unexpected"
MESSAGE_CHARACTERS = 20_000
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def code_of(kind: type[RegistryError]) -> str:
    """The stable code of an error's class."""
    return _WORD.sub("_", kind.__name__.removesuffix("Error")).lower()


def document_of(error: RegistryError) -> dict[str, Any]:
    """`code`, `message` and the error's own fields."""
    if isinstance(error, StorageError) and not isinstance(error, (CatalogBusyError, IntegrityError)):
        return {"code": code_of(type(error)), "message": STORAGE_MESSAGE}
    fields = {
        name: value
        for name, value in vars(error).items()
        if name not in ("message", "args") and not name.startswith("_") and not isinstance(value, Path)
    }
    return {"code": code_of(type(error)), "message": error.message, **fields}


def error_from(document: Mapping[str, Any]) -> RegistryError | None:
    """The error that a document is of; None where this release does not know its code.

    The text is the other side's, so no constructor makes it anew.
    """
    kind = {code_of(known): known for known in known_errors()}.get(str(document.get("code")))
    if kind is None:
        return None
    error = kind.__new__(kind)
    RegistryError.__init__(error, str(document.get("message", ""))[:MESSAGE_CHARACTERS])
    for name, value in document.items():
        if name.isidentifier() and not name.startswith("_") and name not in ("code", "message", "args", "request_id"):
            setattr(error, name, _value_of(name, value))
    if isinstance(error, StorageError):
        error.path = None
    return error


def known_errors() -> Iterator[type[RegistryError]]:
    """Every class of the registry's errors, the root first."""
    pending: list[type[RegistryError]] = [RegistryError]
    while pending:
        kind = pending.pop(0)
        yield kind
        pending.extend(kind.__subclasses__())


def _value_of(name: str, value: Any) -> Any:
    if name == "reason" and isinstance(value, str):
        known = {reason.value: reason for reason in RejectReason}
        return known.get(value, value)
    return tuple(value) if isinstance(value, list) else value
