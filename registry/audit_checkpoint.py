"""Where the audit log begins, once its oldest rows were taken out: the end of the chain as it was up to there.

The checkpoint stands in `registry_meta`, and in the row of the log that says who took the rows out and when. That row
is part of the chain, so a checkpoint that was changed or made up is found. The database lets rows go only up to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import MetaRow

CHECKPOINT_KEY = "audit_checkpoint"
PRUNE_ACTION = "prune_audit"


@dataclass(frozen=True)
class AuditCheckpoint:
    """Rows up to the id `through` are gone: `rows` in all, the last of which had the hash `row_hash`."""

    through: int
    rows: int
    row_hash: str

    def as_detail(self) -> dict[str, Any]:
        """As the log's own row tells of it."""
        return {"through": self.through, "rows": self.rows, "row_hash": self.row_hash}


def read_checkpoint(session: Session) -> AuditCheckpoint | None:
    """Where the log begins; None where it is all there."""
    value = session.scalar(select(MetaRow.value).where(MetaRow.key == CHECKPOINT_KEY))
    return None if value is None else AuditCheckpoint(**json.loads(value))


def write_checkpoint(session: Session, checkpoint: AuditCheckpoint) -> None:
    """Write it down; from then on the database lets the rows go."""
    session.merge(MetaRow(key=CHECKPOINT_KEY, value=json.dumps(checkpoint.as_detail())))
    session.flush()
