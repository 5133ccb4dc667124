"""Reads outside documents into msgspec types, from any thread.

msgspec works a type out at its first use, and two threads that meet there end the process (0.22: a segmentation fault,
found by the storm of `tests/registry/campaigns`). Here the first use of a type is one thread's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_lock = threading.Lock()
_worked_out: set[Any] = set()


def convert(document: object, kind: type[T], *, dec_hook: Callable[[type, Any], Any] | None = None) -> T:
    """Values that are parsed already, as this type; `dec_hook` makes what msgspec does not know.

    Raises msgspec.ValidationError.
    """
    _work_out(kind)
    return msgspec.convert(document, kind, dec_hook=dec_hook)


def decode(raw: bytes | str, kind: type[T]) -> T:
    """JSON, as this type. Raises msgspec.DecodeError, msgspec.ValidationError."""
    _work_out(kind)
    return msgspec.json.decode(raw, type=kind)


def _work_out(kind: Any) -> None:
    if kind not in _worked_out:
        with _lock:
            msgspec.json.Decoder(kind)
            _worked_out.add(kind)
