"""What can be checked of a registry over HTTP: quotas, the audit log, keys and signatures."""

from __future__ import annotations

from registry.audit_entry import AuditEntry, AuditVerification
from registry.principal import OPERATOR, Principal
from registry.quota_usage import Usage
from registry.remote.paths import version_path
from registry.remote.transport import Transport, part
from registry.signing_key import SigningKey, VersionSignature


class RemoteSafekeeping:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def set_quota(
        self, tenant: str, *, quota_bytes: int | None, quota_versions: int | None, principal: Principal = OPERATOR
    ) -> Usage:
        """Bound what a tenant may have; None is no limit."""
        body = {"bytes": quota_bytes, "versions": quota_versions}
        return self._http.ask("PUT", f"/tenants/{part(tenant)}/quota", Usage, principal=principal, body=body)

    def usage(self, tenant: str, *, principal: Principal = OPERATOR) -> Usage:
        """What a tenant has and may have."""
        return self._http.get(f"/tenants/{part(tenant)}/quota", Usage, principal=principal)

    def audit_entries(
        self,
        *,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 100,
        principal: Principal = OPERATOR,
    ) -> list[AuditEntry]:
        """The newest entries of the audit log, of one tenant or (the operator's) of all, with ids below `before`."""
        params = {"tenant": tenant, "before": before, "limit": limit}
        return self._http.get("/audit", list[AuditEntry], principal=principal, params=params)

    def verify_audit(self, *, expect: str | None = None, principal: Principal = OPERATOR) -> AuditVerification:
        """Check the audit log's chain of hashes, and that a hash that was kept elsewhere is in it."""
        return self._http.get("/audit/verification", AuditVerification, principal=principal, params={"expect": expect})

    def add_key(self, tenant: str, public_pem: str, *, label: str, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a public key: what it signs counts as signed."""
        body = {"public_pem": public_pem, "label": label}
        return self._http.ask("POST", f"/tenants/{part(tenant)}/keys", SigningKey, principal=principal, body=body)

    def list_keys(self, tenant: str, *, principal: Principal = OPERATOR) -> list[SigningKey]:
        """A tenant's public keys, revoked ones too."""
        return self._http.get(f"/tenants/{part(tenant)}/keys", list[SigningKey], principal=principal)

    def revoke_key(self, tenant: str, key: str, *, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a key no longer: its signatures count for nothing, old ones too."""
        path = f"/tenants/{part(tenant)}/keys/revoke"
        return self._http.ask("POST", path, SigningKey, principal=principal, body={"key": key})

    def attach_signature(self, ref: str, bundle: str, *, principal: Principal) -> VersionSignature:
        """Keep a signature that somebody made of a version (`registry.model_signature`)."""
        path = f"{version_path(ref)}/signatures"
        return self._http.ask("POST", path, VersionSignature, principal=principal, body={"bundle": bundle})

    def signatures(self, ref: str, principal: Principal) -> list[VersionSignature]:
        """The signatures of a version, each verified now."""
        return self._http.get(f"{version_path(ref)}/signatures", list[VersionSignature], principal=principal)
