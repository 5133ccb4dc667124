"""What a check of the registry found. What checks is in `fsck.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    """What is wrong."""

    MISSING_BLOB = "missing-blob"
    DAMAGED_BLOB = "damaged-blob"
    CATALOG = "catalog"
    USAGE = "usage"
    AUDIT = "audit"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and the versions and commits that it hurts."""

    kind: FaultKind
    detail: str
    hurts: tuple[str, ...] = ()


@dataclass
class FsckReport:
    """What was checked and found. Only its run changes it. `orphans` are blobs that nobody has: no fault, but waste."""

    blobs: int = 0
    blob_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether no fault is left."""
        return not self.faults
