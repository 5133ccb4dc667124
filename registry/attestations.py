"""What somebody says of a version: an evaluation, a probe run, a scan, an approval. One method is one transaction.

It does: check who may say what, keep it for ever, and list it. It does not: decide what follows (`gates.py`), or make
signatures (`signatures.py`). An attestation is never changed or taken back; a newer one of its name counts instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.attestation import Attestation, AttestationKind
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, InvalidValueError, PermissionDeniedError
from registry.event import EventKind
from registry.gates import holder_of
from registry.lookup import find_adapter, find_version
from registry.models import AdapterRow, AliasPolicyRow, AttestationRow, VersionRow
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.policies import FIGURE_LIMIT, read_policy
from registry.principal import Principal, Role
from registry.version import Visibility

NOTE_CHARACTERS = 2_000
METRICS_LIMIT = 64
ATTESTATIONS_LIMIT = 1_000
"""Of one version."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}", re.ASCII)
_METRIC = re.compile(r"[^\x00-\x1f\x7f]{1,128}")


class Attestations:
    """Statements about versions. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def evaluation(
        self,
        ref: AdapterRef,
        name: str,
        metrics: Mapping[str, float],
        *,
        passed: bool | None,
        note: str,
        principal: Principal,
    ) -> Attestation:
        """Figures that somebody measured. Needs the role publisher. Raises NotFoundError, InvalidValueError."""
        figures = _check_metrics(metrics)
        document = {"metrics": figures}
        return self._add(ref, AttestationKind.EVALUATION, _check_name(name), passed, document, note, principal)

    def probes(self, ref: AdapterRef, name: str, *, passed: bool, note: str, principal: Principal) -> Attestation:
        """The manifest's probes were run somewhere. Needs the role publisher."""
        return self._add(ref, AttestationKind.PROBE, _check_name(name), passed, {}, note, principal)

    def scan(self, ref: AdapterRef, scanner: str, *, passed: bool, note: str, principal: Principal) -> Attestation:
        """A scanner looked at the files. Needs the role publisher."""
        return self._add(ref, AttestationKind.SCAN, _check_name(scanner), passed, {}, note, principal)

    def approve(self, ref: AdapterRef, alias: str, *, note: str, principal: Principal) -> Attestation:
        """Approve the version for an alias. Needs the role promoter; a second approval by the same actor is the first.

        Raises PermissionDeniedError for the version's author where the alias's policy wants others.
        """
        return self._add(ref, AttestationKind.APPROVAL, parse_alias(alias), True, {}, note, principal)

    def of(self, ref: AdapterRef, principal: Principal) -> list[Attestation]:
        """Everything that is attested of a version, oldest first. Raises NotFoundError."""
        with self._database.reading() as session:
            version, adapter, tenant = find_version(session, ref, principal)
            query = select(AttestationRow).where(AttestationRow.version_id == version.id).order_by(AttestationRow.id)
            name = AdapterName(tenant, adapter.name)
            return [_to_attestation(row, name, version.number) for row in session.scalars(query)]

    def _add(
        self,
        ref: AdapterRef,
        kind: AttestationKind,
        subject: str,
        passed: bool | None,
        document: dict[str, Any],
        note: str,
        principal: Principal,
    ) -> Attestation:
        check_text("note", note, limit_characters=NOTE_CHARACTERS)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            version, adapter, tenant = find_version(session, ref, principal)
            name = AdapterName(tenant, adapter.name)
            find_adapter(session, name, principal, lock=True)
            role = Role.PROMOTER if kind is AttestationKind.APPROVAL else Role.PUBLISHER
            principal.require(role, name, action=f"attest {kind.value} of a version of")
            query = select(AttestationRow).where(AttestationRow.version_id == version.id)
            if kind is AttestationKind.APPROVAL:
                _check_author(session, adapter, subject, version, principal)
                same = query.where(AttestationRow.kind == kind.value, AttestationRow.subject == subject)
                present = session.scalar(same.where(AttestationRow.actor == principal.actor))
                if present is not None:
                    return _to_attestation(present, name, version.number)
            if session.scalars(select(func.count()).select_from(query.subquery())).one() >= ATTESTATIONS_LIMIT:
                raise ConflictError(
                    f"{name}@{version.number} has {ATTESTATIONS_LIMIT} attestations, and takes no more."
                )
            row = AttestationRow(
                version_id=version.id,
                kind=kind.value,
                subject=subject,
                passed=passed,
                document=json.dumps(document | {"note": note, "role": principal.role.value}, sort_keys=True),
                actor=principal.actor,
                created_at=now,
            )
            session.add(row)
            session.flush()
            _record(session, name, adapter, version, row)
            return _to_attestation(row, name, version.number)


def _check_author(session: Session, adapter: AdapterRow, alias: str, version: VersionRow, principal: Principal) -> None:
    """The gate leaves such approvals out in any case; here the author is told at once."""
    policy = session.get(AliasPolicyRow, (adapter.id, alias))
    if policy is None or not read_policy(policy.document).by_others:
        return
    if holder_of(session, version.created_by) == holder_of(session, principal.actor):
        why = f"you published it, and the policy of alias {alias!r} wants somebody else"
        raise PermissionDeniedError("approve", f"{adapter.name}@{version.number}", why)


def _record(session: Session, name: AdapterName, adapter: AdapterRow, version: VersionRow, row: AttestationRow) -> None:
    facts = {"kind": row.kind, "subject": row.subject, "passed": row.passed}
    audit.record(
        session,
        at=row.created_at,
        actor=row.actor,
        action="attest",
        subject=f"{name}@{version.number}",
        kind=row.kind,
        about=row.subject,
        passed=None if row.passed is None else int(row.passed),
    )
    events.record(
        session,
        at=row.created_at,
        kind=EventKind.VERSION_ATTESTED,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": row.actor, "version": version.number, "digest": version.digest, "attested": facts},
    )


def _check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise InvalidNameError("a name", text, "it has 1 to 128 characters of a-z, A-Z, 0-9 and . _ -")
    return text


def _check_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    if not 1 <= len(metrics) <= METRICS_LIMIT:
        raise InvalidValueError("metrics", f"an evaluation has 1 to {METRICS_LIMIT} of them")
    figures = {}
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise InvalidValueError("metrics", "a name has 1 to 128 characters, without control characters")
        check_text("metrics", name, limit_characters=128)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= FIGURE_LIMIT:
            raise InvalidValueError("metrics", f"{name!r} is not a number from {-FIGURE_LIMIT:g} to {FIGURE_LIMIT:g}")
        figures[name] = float(value)
    assert all(map(math.isfinite, figures.values()))
    return figures


def _to_attestation(row: AttestationRow, name: AdapterName, number: int) -> Attestation:
    return Attestation(
        attestation_id=row.id,
        adapter=str(name),
        number=number,
        kind=AttestationKind(row.kind),
        subject=row.subject,
        passed=row.passed,
        document=json.loads(row.document),
        actor=row.actor,
        created_at=row.created_at,
    )
