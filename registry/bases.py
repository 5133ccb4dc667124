"""Registered bases in the database. One method is one transaction."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from sqlalchemy import select

from registry import audit, events
from registry.base import BaseRecord
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, NotFoundError
from registry.event import EventKind
from registry.models import BaseRow
from registry.principal import OPERATOR, Principal

PREFIX_MIN_DIGITS = 8
RECORDS_KEPT = 32


class Bases:
    """The bases that adapters are judged against. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, record: BaseRecord, *, principal: Principal = OPERATOR) -> BaseRecord:
        """Keep a base. The same fingerprint with the same layers gives the record that is already there.

        Only the operator adds one: bases are for all tenants. Raises PermissionDeniedError, and ConflictError where the
        fingerprint is known with other layers: one of the two descriptions is wrong.
        """
        with self._database.writing() as session:
            row = session.get(BaseRow, record.fingerprint)
            if row is not None:
                known = _to_record(row)
                if known.modules != record.modules or known.quantization != record.quantization:
                    raise ConflictError(
                        f"Base {record.fingerprint} is registered as {known.name!r} with other layers or another "
                        "quantization. Prepare the base again: one of the two base.json files was edited."
                    )
                if record.vectors and not known.vectors:  # an earlier release did not note them
                    principal.require_operator(action="register the base", subject=record.name)
                    known = msgspec.structs.replace(known, vectors=record.vectors)
                    row.document = json.dumps(known.to_json(), sort_keys=True)
                return known
            principal.require_operator(action="register the base", subject=record.name)
            now = datetime.now(UTC)
            document = json.dumps(record.to_json(), sort_keys=True)
            session.add(BaseRow(fingerprint=record.fingerprint, name=record.name, document=document, created_at=now))
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="register_base",
                subject=record.fingerprint,
                name=record.name,
            )
            events.record(
                session,
                at=now,
                kind=EventKind.BASE_REGISTERED,
                tenant="",
                adapter="",
                is_public=True,
                document={"fingerprint": record.fingerprint, "name": record.name},
            )
            return record

    def all(self) -> list[BaseRecord]:
        """Every base, oldest first."""
        with self._database.reading() as session:
            return [_to_record(row) for row in session.scalars(select(BaseRow).order_by(BaseRow.created_at))]

    def find(self, fingerprint: str) -> BaseRecord:
        """The base of this fingerprint, or of the one that begins so. Raises NotFoundError, ConflictError."""
        is_prefix = len(fingerprint) >= PREFIX_MIN_DIGITS and not fingerprint.strip("0123456789abcdef")
        if not is_prefix:
            rule = f"it has {PREFIX_MIN_DIGITS} to 64 digits of 0-9 and a-f"
            raise InvalidNameError("a base fingerprint", fingerprint, rule)
        with self._database.reading() as session:
            query = select(BaseRow).where(BaseRow.fingerprint.startswith(fingerprint)).limit(2)
            rows = session.scalars(query).all()
            if len(rows) > 1:
                raise ConflictError(f"Several bases begin with {fingerprint!r}. Give more digits.")
            if not rows:
                raise NotFoundError(
                    "base",
                    fingerprint,
                    "Make it known with `loraplex base register SOURCE`.",
                )
            return _to_record(rows[0])


def _to_record(row: BaseRow) -> BaseRecord:
    return _parsed(row.document)


@lru_cache(RECORDS_KEPT)
def _parsed(document: str) -> BaseRecord:
    """A base lists hundreds of modules, and much asks for it. The result is shared: do not change it."""
    return BaseRecord.from_json(json.loads(document))
