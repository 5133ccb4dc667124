"""The feed of what happened: each event is written in the transaction of its change, and read in the order of commits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from registry.models import EventRow


def record(
    session: Session,
    *,
    at: datetime,
    kind: str,
    tenant: str,
    adapter: str,
    is_public: bool,
    document: Mapping[str, Any],
) -> None:
    """Add an event to the transaction. `adapter` is `tenant/name`; nothing secret may be in the document."""
    session.add(
        EventRow(
            at=at,
            kind=kind,
            tenant=tenant,
            adapter=adapter,
            is_public=is_public,
            document=json.dumps(document, sort_keys=True),
        )
    )
