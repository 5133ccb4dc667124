"""Writes the audit log: one row per change, inside the transaction of that change."""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy.orm import Session

from registry.models import AuditRow


def record(
    session: Session, *, at: datetime, actor: str, action: str, subject: str, **detail: str | int | None
) -> None:
    """Add a row. Nothing secret may be in the detail."""
    text = json.dumps(detail, sort_keys=True)
    session.add(AuditRow(at=at, actor=actor, action=action, subject=subject, detail=text))
