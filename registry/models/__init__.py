"""The tables of the catalog. They change only together with a migration (`registry/migrations`); a test compares.

tenants 1--n tokens, adapters, tenant_blobs, signing_keys, webhooks      bases 1--n versions
adapters 1--n versions 1--n version_files, version_experts               versions 1--n attestations, leases
adapters 1--n aliases (where each points now), alias_moves (every move there ever was), alias_policies, canaries
adapters 1--n commits 1--n commit_files                                  adapters 1--n refs
events 1--n deliveries                                                   audit_events: one row per change
"""

from registry.models.core import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    AuditRow,
    BaseRow,
    MetaRow,
    TenantRow,
    TokenRow,
    VersionExpertRow,
    VersionFileRow,
    VersionRow,
)
from registry.models.operations import (
    DeliveryRow,
    EventRow,
    LeaseRow,
    MirrorRow,
    PinRow,
    RetentionRow,
    TombstoneRow,
    WebhookRow,
)
from registry.models.promotion import AliasPolicyRow, AttestationRow, CanaryRow, SigningKeyRow
from registry.models.repositories import CommitFileRow, CommitRow, RefRow, TenantBlobRow
from registry.models.row import Row, UtcDateTime

__all__ = [
    "AdapterRow",
    "AliasMoveRow",
    "AliasPolicyRow",
    "AliasRow",
    "AttestationRow",
    "AuditRow",
    "BaseRow",
    "CanaryRow",
    "CommitFileRow",
    "CommitRow",
    "DeliveryRow",
    "EventRow",
    "LeaseRow",
    "MetaRow",
    "MirrorRow",
    "PinRow",
    "RefRow",
    "RetentionRow",
    "Row",
    "SigningKeyRow",
    "TenantBlobRow",
    "TenantRow",
    "TokenRow",
    "TombstoneRow",
    "UtcDateTime",
    "VersionExpertRow",
    "VersionFileRow",
    "VersionRow",
    "WebhookRow",
]
