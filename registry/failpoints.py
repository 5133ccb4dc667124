"""Named points at which tests can make this process die, fail or wait. Without LORAPLEX_FAILPOINTS they do nothing.

    LORAPLEX_FAILPOINTS=publish.before_commit=kill          SIGKILL to this process when it gets there
    LORAPLEX_FAILPOINTS=blobs.write=error:ENOSPC@3          the third time, OSError(ENOSPC)
    LORAPLEX_FAILPOINTS=gc.before_delete=sleep:0.5,a=kill   several, separated by commas

The names stand in `NAMES`, which tests walk, so that no point goes untried. The variable is read once, at the first
point that is reached; a name in it that is not in `NAMES` is an error, not a wish.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import cache

VARIABLE = "LORAPLEX_FAILPOINTS"
NAMES = frozenset(
    {
        "blobs.before_rename",
        "blobs.after_rename",
        "blobs.write",
        "catalog.before_commit",
        "catalog.after_commit",
        "commit.after_reserve",
        "commit.after_store",
        "commit.after_judge",
        "commit.before_commit",
        "commit.after_commit",
        "delete.before_commit",
        "delete.after_commit",
        "gc.before_delete",
        "gc.after_delete",
        "gc.before_forget",
        "promote.before_commit",
        "promote.after_commit",
        "publish.after_stage",
        "publish.after_judge",
        "publish.after_keep",
        "publish.before_commit",
        "publish.after_commit",
        "upload.after_store",
        "upload.after_mark",
    }
)
"""Every point there is. A point outside of this set is our own bug."""


@dataclass
class _Armed:
    """What happens at a point, and at which visit. Only `_visit` changes it, under the lock."""

    action: str
    argument: str
    visits_left: int


_lock = threading.Lock()


def reach(name: str) -> None:
    """Mark a point of the code. Does nothing unless the environment has armed the point."""
    armed = _armed()
    if not armed:
        return
    assert name in NAMES, name
    with _lock:
        point = armed.get(name)
        if point is None:
            return
        point.visits_left -= 1
        if point.visits_left != 0:
            return
    _act(point)


def _act(point: _Armed) -> None:
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "sleep":
        time.sleep(float(point.argument))
    else:
        number = getattr(errno, point.argument)
        raise OSError(number, os.strerror(number))


@cache
def _armed() -> dict[str, _Armed]:
    armed = {}
    for item in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, what = item.partition("=")
        what, _, visit = what.partition("@")
        action, _, argument = what.partition(":")
        if name not in NAMES or action not in {"kill", "sleep", "error"}:
            raise ValueError(f"{VARIABLE}: {item!r} is no known point and action")
        armed[name] = _Armed(action, argument, int(visit or "1"))
    return armed
