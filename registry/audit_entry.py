"""An entry of the audit log, and what verifying its chain found. What reads them is in `audit_log.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

ENTRIES_LIMIT = 1000


@dataclass(frozen=True)
class AuditEntry:
    """One change. `row_hash` is None for what was written before rows were chained."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    tenant: str | None
    detail: dict[str, Any]
    row_hash: str | None


@dataclass(frozen=True)
class AuditVerification:
    """The state of the chain. `faults` is empty where it is whole; `row_hash` is its newest hash, None without rows.

    `pruned_rows` were taken out before the `rows` that are there, and are covered by a checkpoint.
    """

    rows: int
    row_hash: str | None
    faults: tuple[str, ...]
    pruned_rows: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no fault was found."""
        return not self.faults
