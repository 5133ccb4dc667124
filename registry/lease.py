"""What keeps a version: a server that has loaded it, or a person who pinned it. What keeps them is in `leases.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Lease:
    """Who uses a version, and until when at least."""

    adapter: str
    number: int
    holder: str
    expires_at: datetime


@dataclass(frozen=True)
class Pin:
    """Who wants a version kept, and why."""

    adapter: str
    number: int
    reason: str
    actor: str
    created_at: datetime
