"""What the registry's upkeep does and how often: one policy for all servers of a registry, kept in its database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from registry import audit
from registry.database import Database
from registry.errors import InvalidValueError
from registry.models import MetaRow
from registry.principal import Principal

POLICY_KEY = "upkeep_policy"
HOUR_SECONDS, DAY_SECONDS = 3600, 86_400
YEAR_SECONDS = 366 * DAY_SECONDS
_RANGES = {
    "collect_every_seconds": (60, 30 * DAY_SECONDS),
    "grace_seconds": (0, 365 * DAY_SECONDS),
    "events_seconds": (DAY_SECONDS, 100 * YEAR_SECONDS),
    "audit_seconds": (DAY_SECONDS, 100 * YEAR_SECONDS),
}
"""In seconds."""
_MAY_BE_NONE = {"events_seconds", "audit_seconds"}


@dataclass(frozen=True)
class UpkeepPolicy:
    """How often garbage is collected and with which grace, and how long events and audit rows are kept; None: for ever.

    Garbage is what `loraplex gc` takes away, with the retention rules.
    """

    collect_every_seconds: int = 6 * HOUR_SECONDS
    grace_seconds: int = DAY_SECONDS
    events_seconds: int | None = 90 * DAY_SECONDS
    audit_seconds: int | None = None


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
            _check(name, value)
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


def _check(name: str, value: int | None) -> None:
    lowest, highest = _RANGES[name]
    if value is None:
        if name not in _MAY_BE_NONE:
            raise InvalidValueError(name, "it is a number of seconds")
    elif not lowest <= value <= highest:
        raise InvalidValueError(name, f"it is {value:,}, and not between {lowest:,} and {highest:,} seconds")
