"""Ctrl-C during a run: the run stops between two steps, after its state is written.

It does: turn the first SIGINT or SIGTERM into a wish that the loop asks for. The second one ends the process as usual.
It does not: write anything (`loop`). Signals belong to the command; a program that calls `run_job` handles its own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(on_wish: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Inside, the yielded function says whether a stop was asked for. `on_wish` is called when it is."""
    wished = False
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def wish(number: int, _frame: FrameType | None) -> None:
        nonlocal wished
        wished = True
        for each, handler in before.items():
            signal.signal(each, handler)
        on_wish()

    for number in STOP_SIGNALS:
        signal.signal(number, wish)
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
