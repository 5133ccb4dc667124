"""An adapter that is mirrored, and what a look at its upstream brought. What pulls is in `mirrors.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from registry.publication import Publication

DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class Mirror:
    """Where an adapter is pulled from, and the upstream commit that its newest pulled version has.

    One with `every_seconds` is looked at so often by itself (`mirror_schedule.py`): `checked_at` is when that was done
    last, `failures` counts those since it last succeeded, and `failure` is the last one's reason.
    """

    adapter: str
    upstream: str
    revision: str
    commit: str
    fetched_at: datetime
    every_seconds: int | None = None
    checked_at: datetime | None = None
    next_sync_at: datetime | None = None
    failures: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class MirrorSync:
    """The outcome of looking at the upstream. `publication` is None where it is still at the same commit."""

    mirror: Mirror
    publication: Publication | None
