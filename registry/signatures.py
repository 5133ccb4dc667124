"""Signatures of versions: which keys a tenant trusts, and who has signed what. One method is one transaction.

A signature is made on the signer's machine (`model_signature.py`); private keys never come here. It is kept as an
attestation, and verified anew whenever somebody asks: with the key as it stands now, over the files as the catalog has
them. A key that is revoked makes its signatures count for nothing, from then on and for what was signed before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.attestation import AttestationKind
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, InvalidValueError, NotFoundError
from registry.event import EventKind
from registry.file_entry import FileEntry
from registry.lookup import find_adapter, find_version
from registry.model_signature import algorithm_of, hint_in, hint_of, id_of, pem_of, read_public_key, verify
from registry.models import AdapterRow, AttestationRow, SigningKeyRow, TenantRow, VersionFileRow, VersionRow
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal, Role
from registry.signing_key import SigningKey, VersionSignature
from registry.usage import locked_tenant
from registry.version import Visibility

LABEL_CHARACTERS = 200
SIGNATURES_LIMIT = 100
"""Of one version."""
KEYS_LIMIT = 1_000
"""Of one tenant, revoked ones included."""


class Signatures:
    """Keys and signatures. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_key(self, tenant: str, public_pem: str, *, label: str, principal: Principal) -> SigningKey:
        """Trust a key from now on; adding it again changes nothing.

        Raises PermissionDeniedError, NotFoundError, InvalidValueError, and ConflictError for a label that is taken or a
        key that was revoked.
        """
        principal.require_tenant(Role.ADMIN, tenant, action="add a key of")
        if not label:
            raise InvalidValueError("label", "it is empty; say whose key it is")
        check_text("label", label, limit_characters=LABEL_CHARACTERS)
        key = read_public_key(public_pem)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant_row = locked_tenant(session, tenant, principal, now)
            present = session.get(SigningKeyRow, (tenant_row.id, id_of(key)))
            if present is not None and present.revoked_at is None:
                return _to_key(present, tenant)
            if present is not None:
                raise ConflictError(f"Key {present.label!r} was revoked and is not trusted again. Make a new one.")
            own = select(SigningKeyRow).where(SigningKeyRow.tenant_id == tenant_row.id)
            if session.scalar(own.where(SigningKeyRow.label == label)) is not None:
                raise ConflictError(f"Tenant {tenant!r} has a key {label!r} already. Choose another label.")
            if session.scalars(select(func.count()).select_from(own.subquery())).one() >= KEYS_LIMIT:
                raise ConflictError(f"Tenant {tenant!r} has {KEYS_LIMIT} keys, and takes no more.")
            row = SigningKeyRow(
                tenant_id=tenant_row.id,
                id=id_of(key),
                label=label,
                public_pem=pem_of(key),
                created_at=now,
                created_by=principal.actor,
                revoked_at=None,
            )
            session.add(row)
            _record(session, "add_key", row, tenant, principal, now)
            return _to_key(row, tenant)

    def keys(self, tenant: str, principal: Principal) -> list[SigningKey]:
        """A tenant's keys, revoked ones too, oldest first. Raises NotFoundError, PermissionDeniedError."""
        principal.require_tenant(Role.READER, tenant, action="list the keys of")
        with self._database.reading() as session:
            query = select(SigningKeyRow).join(TenantRow, TenantRow.id == SigningKeyRow.tenant_id)
            rows = session.scalars(query.where(TenantRow.name == tenant).order_by(SigningKeyRow.created_at))
            return [_to_key(row, tenant) for row in rows]

    def revoke_key(self, tenant: str, key: str, principal: Principal) -> SigningKey:
        """Trust a key, given by its id, the beginning of it, or its label, no longer.

        Raises NotFoundError, PermissionDeniedError.
        """
        principal.require_tenant(Role.ADMIN, tenant, action="revoke a key of")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant_row = locked_tenant(session, tenant, principal, now)
            rows = session.scalars(select(SigningKeyRow).where(SigningKeyRow.tenant_id == tenant_row.id)).all()
            found = [row for row in rows if key == row.label] or [
                row for row in rows if len(key) >= 8 and row.id.startswith(key)
            ]
            if len(found) != 1:
                raise NotFoundError("key", key, f"List them with `loraplex key ls --tenant {tenant}`.")
            if found[0].revoked_at is None:
                found[0].revoked_at = now
                _record(session, "revoke_key", found[0], tenant, principal, now)
            return _to_key(found[0], tenant)

    def attach(self, ref: AdapterRef, bundle: str, principal: Principal) -> VersionSignature:
        """Keep a signature of a version. It must be valid, by a key that the version's tenant trusts.

        The same key's second signature is the first one. Needs the role publisher. Raises NotFoundError,
        PermissionDeniedError, InvalidValueError.
        """
        if ref.adapter is None:
            raise InvalidNameError("a version to sign", str(ref), "name the adapter too, such as acme/text2sql@3")
        name, now = ref.adapter, datetime.now(UTC)
        hint_in(bundle)
        with self._database.writing() as session:
            version, _, _ = find_version(session, ref, principal)
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PUBLISHER, name, action="sign a version of")
            key = _signer(session, adapter, version, bundle)
            rows = _signature_rows(session, version)
            for row in rows:
                if row.subject == key.id:
                    return _to_signature(session, adapter, name, version, row)
            if len(rows) >= SIGNATURES_LIMIT:
                raise ConflictError(f"{name}@{version.number} has {SIGNATURES_LIMIT} signatures, and takes no more.")
            row = AttestationRow(
                version_id=version.id,
                kind=AttestationKind.SIGNATURE.value,
                subject=key.id,
                passed=True,
                document=json.dumps({"bundle": bundle, "note": "", "role": principal.role.value}, sort_keys=True),
                actor=principal.actor,
                created_at=now,
            )
            session.add(row)
            session.flush()
            _tell(session, adapter, name, version, key, principal, now)
            return _to_signature(session, adapter, name, version, row)

    def of(self, ref: AdapterRef, principal: Principal) -> list[VersionSignature]:
        """The signatures of a version, oldest first, each verified now. Raises NotFoundError."""
        with self._database.reading() as session:
            version, adapter, tenant = find_version(session, ref, principal)
            name = AdapterName(tenant, adapter.name)
            rows = _signature_rows(session, version)
            return [_to_signature(session, adapter, name, version, row) for row in rows]


def verified_keys(session: Session, version: VersionRow) -> Sequence[str]:
    """The labels of the keys that the version's tenant trusts now and that have signed it validly."""
    adapter = session.get_one(AdapterRow, version.adapter_id)
    labels = []
    for row in _signature_rows(session, version):
        key = session.get(SigningKeyRow, (adapter.tenant_id, row.subject))
        if key is not None and _fault(session, version, key, row) is None:
            labels.append(key.label)
    return sorted(set(labels))


def _signer(session: Session, adapter: AdapterRow, version: VersionRow, bundle: str) -> SigningKeyRow:
    """The trusted key that made the bundle over this version's files. Raises InvalidValueError."""
    faults = ["no key that the tenant trusts made it: `loraplex key add`"]
    for key in session.scalars(select(SigningKeyRow).where(SigningKeyRow.tenant_id == adapter.tenant_id)):
        public = read_public_key(key.public_pem)
        if hint_in(bundle) not in (None, "", hint_of(public)):
            continue
        fault = verify(bundle, _files(session, version), public)
        if fault is None and key.revoked_at is None:
            return key
        faults.append(fault or f"key {key.label!r} is revoked")
    raise InvalidValueError("bundle", faults[-1])


def _fault(session: Session, version: VersionRow, key: SigningKeyRow, row: AttestationRow) -> str | None:
    if key.revoked_at is not None:
        return f"key {key.label!r} was revoked on {key.revoked_at:%Y-%m-%d}"
    bundle = json.loads(row.document)["bundle"]
    return verify(bundle, _files(session, version), read_public_key(key.public_pem))


def _signature_rows(session: Session, version: VersionRow) -> Sequence[AttestationRow]:
    is_signature = AttestationRow.kind == AttestationKind.SIGNATURE.value
    query = select(AttestationRow).where(AttestationRow.version_id == version.id, is_signature)
    return session.scalars(query.order_by(AttestationRow.id)).all()


def _files(session: Session, version: VersionRow) -> list[FileEntry]:
    rows = session.scalars(select(VersionFileRow).where(VersionFileRow.version_id == version.id))
    return [FileEntry(row.path, row.size, row.sha256) for row in rows]


def _to_signature(
    session: Session, adapter: AdapterRow, name: AdapterName, version: VersionRow, row: AttestationRow
) -> VersionSignature:
    key = session.get(SigningKeyRow, (adapter.tenant_id, row.subject))
    fault = "its key is unknown" if key is None else _fault(session, version, key, row)
    label = "" if key is None else key.label
    bundle = json.loads(row.document)["bundle"]
    return VersionSignature(str(name), version.number, row.subject, label, fault, row.actor, row.created_at, bundle)


def _to_key(row: SigningKeyRow, tenant: str) -> SigningKey:
    algorithm = algorithm_of(read_public_key(row.public_pem))
    moments = (row.created_at, row.revoked_at)
    return SigningKey(tenant, row.id, row.label, algorithm, row.public_pem, row.created_by, *moments)


def _record(
    session: Session, action: str, row: SigningKeyRow, tenant: str, principal: Principal, now: datetime
) -> None:
    audit.record(session, at=now, actor=principal.actor, action=action, subject=row.id, tenant=tenant, label=row.label)


def _tell(
    session: Session,
    adapter: AdapterRow,
    name: AdapterName,
    version: VersionRow,
    key: SigningKeyRow,
    principal: Principal,
    now: datetime,
) -> None:
    subject = f"{name}@{version.number}"
    audit.record(session, at=now, actor=principal.actor, action="sign", subject=subject, key=key.id, label=key.label)
    facts = {"kind": AttestationKind.SIGNATURE.value, "subject": key.label, "passed": True}
    events.record(
        session,
        at=now,
        kind=EventKind.VERSION_ATTESTED,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": principal.actor, "version": version.number, "digest": version.digest, "attested": facts},
    )
