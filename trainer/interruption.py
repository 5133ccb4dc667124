"""Ctrl-C during a run: the run stops between two steps, after its state is written.

It does: turn the first SIGINT or SIGTERM into a wish that the loop asks for, and say so. The second one ends the
process as usual.
It does not: write anything (`loop`). Signals belong to the command; a program that calls `run_job` handles its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
NOTE = b"\nstopping after this step; the run can be resumed (again: stop at once)\n"


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside, the yielded function says whether a stop was asked for."""
    wished = False
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def wish(number: int, _frame: FrameType | None) -> None:
        nonlocal wished
        wished = True
        for each, handler in before.items():
            signal.signal(each, handler)
        os.write(STDERR, NOTE)  # a console may be in the middle of a line just now: it cannot be entered twice

    for number in STOP_SIGNALS:
        signal.signal(number, wish)
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
