"""The upkeep's policy in the database. One method is one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from registry import audit
from registry.database import Database
from registry.models import MetaRow
from registry.principal import Principal
from registry.upkeep_policy import UpkeepPolicy, check_field

POLICY_KEY = "upkeep_policy"


class UpkeepPolicies:
    """The policy in the database. Holds no state, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> UpkeepPolicy:
        """The policy that is in force."""
        with self._database.reading() as session:
            return _read(session)

    def change(self, changes: Mapping[str, int | None], principal: Principal) -> UpkeepPolicy:
        """Change some of its fields. Raises PermissionDeniedError, InvalidValueError."""
        principal.require_operator(action="change", subject="the upkeep of the registry")
        for name, value in changes.items():
            check_field(name, value)
        with self._database.writing() as session:
            document: dict[str, Any] = asdict(_read(session)) | dict(changes)
            policy = UpkeepPolicy(**document)
            text = json.dumps(document, sort_keys=True)
            session.merge(MetaRow(key=POLICY_KEY, value=text))
            audit.record(
                session,
                at=datetime.now(UTC),
                actor=principal.actor,
                action="upkeep_policy",
                subject=POLICY_KEY,
                document=text,
            )
            return policy


def _read(session: Session) -> UpkeepPolicy:
    row = session.get(MetaRow, POLICY_KEY)
    if row is None:
        return UpkeepPolicy()
    document: dict[str, Any] = json.loads(row.value)
    known = {field.name for field in fields(UpkeepPolicy)}  # a later release may know more
    return UpkeepPolicy(**{name: value for name, value in document.items() if name in known})
