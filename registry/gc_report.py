"""What a garbage collection took, and how long it waits before. What collects is in `gc.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

GRACE = timedelta(hours=24)


@dataclass
class GcReport:
    """What was taken away, or would be: versions, bytes that tenants have again, and blobs of the store.

    Only its run changes it. `versions` and `blobs` show the first thousand; the counts are whole.
    """

    is_dry_run: bool
    versions: list[str] = field(default_factory=list)
    versions_deleted: int = 0
    tenant_bytes_freed: dict[str, int] = field(default_factory=dict)
    blobs: list[str] = field(default_factory=list)
    blobs_deleted: int = 0
    blob_bytes_deleted: int = 0
