"""What a tenant uses of its quota. What counts and reserves is in `quotas.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a tenant has and may have; a quota of None is no limit."""

    tenant: str
    used_bytes: int
    quota_bytes: int | None
    used_versions: int
    quota_versions: int | None
