"""What ends the demo early: Ctrl-C, or SIGTERM (a user's `kill`, a service manager), which is heeded in the same way.

It does: turn SIGTERM into an exception, and let signals wait while a process is started or ended.
It does not: end processes (`workers`, `server`), or say that the demo has ended (`cli`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever heeds Ctrl-C heeds this."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated in the main thread, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait: a process that was started is known, and one that is being ended has ended.

    A mask would not do: the kernel gives a signal to any thread that does not block it, and the main thread runs its
    handler.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    heeded = [number for number in ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
