"""What can be checked of a registry in process: quotas, the audit log, keys and signatures, its bytes, its backups."""

from __future__ import annotations

from pathlib import Path

from registry.audit_entry import AuditEntry, AuditVerification
from registry.audit_log import AuditLog
from registry.backup import Backups
from registry.backup_folder import BackupManifest
from registry.blobs import BlobStore
from registry.database import Database
from registry.fsck import Fsck, OnBlob
from registry.fsck_report import FsckReport
from registry.names import AdapterRef
from registry.principal import OPERATOR, Principal
from registry.quota_usage import Usage
from registry.quotas import Quotas
from registry.signatures import Signatures
from registry.signing_key import SigningKey, VersionSignature


class LocalSafekeeping:
    """A part of `Registry`: that nothing is lost, changed or taken unseen."""

    def __init__(self, database: Database, blobs: BlobStore, quotas: Quotas) -> None:
        self._quotas = quotas
        self._audit_log = AuditLog(database)
        self._signatures = Signatures(database)
        self._backups = Backups(database, blobs)
        self._fsck = Fsck(database, blobs)

    def set_quota(
        self, tenant: str, *, quota_bytes: int | None, quota_versions: int | None, principal: Principal = OPERATOR
    ) -> Usage:
        """Bound what a tenant may have; None is no limit."""
        return self._quotas.set_quota(
            tenant, quota_bytes=quota_bytes, quota_versions=quota_versions, principal=principal
        )

    def usage(self, tenant: str, *, principal: Principal = OPERATOR) -> Usage:
        """What a tenant has and may have."""
        return self._quotas.usage(tenant, principal=principal)

    def audit_entries(
        self,
        *,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 100,
        principal: Principal = OPERATOR,
    ) -> list[AuditEntry]:
        """The newest entries of the audit log, of one tenant or (the operator's) of all, with ids below `before`."""
        return self._audit_log.entries(tenant=tenant, before=before, limit=limit, principal=principal)

    def verify_audit(self, *, expect: str | None = None, principal: Principal = OPERATOR) -> AuditVerification:
        """Check the audit log's chain of hashes, and that a hash that was kept elsewhere is in it."""
        return self._audit_log.verify(expect=expect, principal=principal)

    def add_key(self, tenant: str, public_pem: str, *, label: str, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a public key: what it signs counts as signed."""
        return self._signatures.add_key(tenant, public_pem, label=label, principal=principal)

    def list_keys(self, tenant: str, *, principal: Principal = OPERATOR) -> list[SigningKey]:
        """A tenant's public keys, revoked ones too."""
        return self._signatures.keys(tenant, principal)

    def revoke_key(self, tenant: str, key: str, *, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a key no longer: its signatures count for nothing, old ones too."""
        return self._signatures.revoke_key(tenant, key, principal)

    def attach_signature(self, ref: str, bundle: str, *, principal: Principal) -> VersionSignature:
        """Keep a signature that somebody made of a version (`registry.model_signature`)."""
        return self._signatures.attach(AdapterRef.parse(ref), bundle, principal)

    def signatures(self, ref: str, principal: Principal) -> list[VersionSignature]:
        """The signatures of a version, each verified now."""
        return self._signatures.of(AdapterRef.parse(ref), principal)

    def backup(
        self, destination: Path, *, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> BackupManifest:
        """Write everything into a new folder, verified, while the registry is in use."""
        return self._backups.write(destination, principal=principal, on_blob=on_blob)

    def restore(
        self, source: Path, *, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> BackupManifest:
        """Fill this registry, which must be empty, from a backup; all of it is verified first."""
        return self._backups.restore(source, principal=principal, on_blob=on_blob)

    def fsck(
        self, *, repair: bool = False, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> FsckReport:
        """Read and check everything; with `repair`, mend what can be mended without losing anything."""
        return self._fsck.run(principal=principal, repair=repair, on_blob=on_blob)

    def check_integrity(self) -> None:
        """As `fsck`, but raises the first fault that it finds: IntegrityError, StorageError."""
        self._fsck.check_integrity()
