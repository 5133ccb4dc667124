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
            return _policy_in(_read(session))

    def change(self, changes: Mapping[str, int | None], principal: Principal) -> UpkeepPolicy:
        """Change some of its fields. Raises PermissionDeniedError, InvalidValueError."""
        principal.require_operator(action="change", subject="the upkeep of the registry")
        for name, value in changes.items():
            check_field(name, value)
        with self._database.writing() as session:
            kept = _read(session)
            policy = _policy_in(kept | dict(changes))
            text = json.dumps(kept | asdict(policy), sort_keys=True)
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


def _read(session: Session) -> dict[str, Any]:
    """What is kept. Fields of a newer release are among it, and stay."""
    row = session.get(MetaRow, POLICY_KEY)
    return {} if row is None else json.loads(row.value)


def _policy_in(kept: Mapping[str, Any]) -> UpkeepPolicy:
    return UpkeepPolicy(**{field.name: kept[field.name] for field in fields(UpkeepPolicy) if field.name in kept})
