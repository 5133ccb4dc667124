"""What can be checked: a tenant's quota and usage, the audit log, signing keys and signatures."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, post, put
from litestar.params import JSONBody, QueryParameter

from registry.audit_entry import ENTRIES_LIMIT, AuditEntry, AuditVerification
from registry.http.parameters import NamePart, TenantPart, VersionPart
from registry.http.service import caller_of, registry_of
from registry.model_signature import BUNDLE_CHARACTERS, PEM_CHARACTERS
from registry.names import SHA256_DIGITS, TENANT_CHARACTERS
from registry.quota_usage import Usage
from registry.quotas import QUOTA_BYTES_LIMIT, QUOTA_VERSIONS_LIMIT
from registry.signatures import LABEL_CHARACTERS
from registry.signing_key import SigningKey, VersionSignature

TenantQuery = Annotated[
    str | None, QueryParameter(name="tenant", max_length=TENANT_CHARACTERS, description="Only this tenant's.")
]
BeforeQuery = Annotated[
    int | None, QueryParameter(name="before", ge=1, le=2**53, description="Only entries with lower ids.")
]
CountQuery = Annotated[int, QueryParameter(name="limit", ge=1, le=ENTRIES_LIMIT, description="How many entries.")]
ExpectQuery = Annotated[
    str | None,
    QueryParameter(name="expect", max_length=SHA256_DIGITS, description="A hash that must be in the chain."),
]


class NewQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant may have; null is no limit."""

    bytes: Annotated[int, msgspec.Meta(ge=0, le=QUOTA_BYTES_LIMIT)] | None
    versions: Annotated[int, msgspec.Meta(ge=0, le=QUOTA_VERSIONS_LIMIT)] | None


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key in PEM form, and whose it is."""

    public_pem: Annotated[str, msgspec.Meta(min_length=1, max_length=PEM_CHARACTERS)]
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=LABEL_CHARACTERS)]


class RevokedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key's label, its id, or at least eight digits of it."""

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=LABEL_CHARACTERS)]


class NewSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle of OpenSSF Model Signing, as text."""

    bundle: Annotated[str, msgspec.Meta(min_length=1, max_length=BUNDLE_CHARACTERS)]


class QuotaController(Controller):
    """What a tenant has and may have."""

    path = "/tenants/{tenant:str}/quota"
    tags = ("tenants",)

    @get(sync_to_thread=True)
    def usage(self, request: Request[Any, Any, Any], tenant: TenantPart) -> Usage:
        """What the tenant has, and may have."""
        return registry_of(request).usage(tenant, principal=caller_of(request))

    @put(sync_to_thread=True)
    def set_quota(self, request: Request[Any, Any, Any], data: JSONBody[NewQuota], tenant: TenantPart) -> Usage:
        """Bound what the tenant may have. For the operator only."""
        return registry_of(request).set_quota(
            tenant, quota_bytes=data.bytes, quota_versions=data.versions, principal=caller_of(request)
        )


class AuditController(Controller):
    """The audit log: who changed what, in a chain of hashes."""

    path = "/audit"
    tags = ("audit",)

    @get(sync_to_thread=True)
    def entries(
        self,
        request: Request[Any, Any, Any],
        tenant: TenantQuery = None,
        before: BeforeQuery = None,
        limit: CountQuery = 100,
    ) -> list[AuditEntry]:
        """The newest entries. An admin reads its tenant's, the operator all."""
        return registry_of(request).audit_entries(
            tenant=tenant, before=before, limit=limit, principal=caller_of(request)
        )

    @get("/verification", sync_to_thread=True)
    def verify(self, request: Request[Any, Any, Any], expect: ExpectQuery = None) -> AuditVerification:
        """Compute every hash again. For the operator only."""
        return registry_of(request).verify_audit(expect=expect, principal=caller_of(request))


class KeyController(Controller):
    """The public keys that a tenant trusts."""

    path = "/tenants/{tenant:str}/keys"
    tags = ("signatures",)

    @get(sync_to_thread=True)
    def list_keys(self, request: Request[Any, Any, Any], tenant: TenantPart) -> list[SigningKey]:
        """The tenant's keys, revoked ones too."""
        return registry_of(request).list_keys(tenant, principal=caller_of(request))

    @post(sync_to_thread=True)
    def add_key(self, request: Request[Any, Any, Any], data: JSONBody[NewKey], tenant: TenantPart) -> SigningKey:
        """Trust a public key. For admins."""
        return registry_of(request).add_key(tenant, data.public_pem, label=data.label, principal=caller_of(request))

    @post("/revoke", status_code=200, sync_to_thread=True)
    def revoke_key(self, request: Request[Any, Any, Any], data: JSONBody[RevokedKey], tenant: TenantPart) -> SigningKey:
        """Trust a key no longer: its signatures count for nothing, old ones too. For admins."""
        return registry_of(request).revoke_key(tenant, data.key, principal=caller_of(request))


class SignatureController(Controller):
    """The signatures of one version."""

    path = "/adapters/{tenant:str}/{name:str}/versions/{version:str}/signatures"
    tags = ("signatures",)

    @get(sync_to_thread=True)
    def signatures(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, version: VersionPart
    ) -> list[VersionSignature]:
        """The version's signatures, each verified now."""
        return registry_of(request).signatures(f"{tenant}/{name}@{version}", caller_of(request))

    @post(sync_to_thread=True)
    def attach_signature(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[NewSignature],
        tenant: TenantPart,
        name: NamePart,
        version: VersionPart,
    ) -> VersionSignature:
        """Keep a signature that a trusted key made of the version. For publishers."""
        ref = f"{tenant}/{name}@{version}"
        return registry_of(request).attach_signature(ref, data.bundle, principal=caller_of(request))
