"""Sends a growing file to the disk while the rest of it is on its way, so that the fsync at its end has little to wait
for. It promises nothing: what is to be durable is synced by its owner, who also learns there of what failed.

Linux has a call for it; elsewhere nothing is sent early.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

SPAN_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2


class EarlyWriteback:
    """What has been written to one open file, and how much of that was sent. Used by one thread at a time."""

    def __init__(self, descriptor: int, *, start: int = 0) -> None:
        self._descriptor = descriptor
        self._sent = start
        self._written = start

    def wrote(self, size: int) -> None:
        """So many bytes more were written, after those before them."""
        self._written += size
        if self._written - self._sent >= SPAN_BYTES:
            self.end()

    def end(self) -> None:
        """Nothing more is written for now: send what is left."""
        _send(self._descriptor, self._sent, self._written - self._sent)
        self._sent = self._written


def _send(descriptor: int, start: int, size: int) -> None:
    """Begin to write a range to the disk. An error is not kept from the fsync, so its result is not looked at."""
    call = _call()
    if call is not None:
        call(descriptor, start, size, _SYNC_FILE_RANGE_WRITE)


@cache
def _call() -> Callable[..., Any] | None:
    if not sys.platform.startswith("linux"):
        return None
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
