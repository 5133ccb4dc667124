"""A key that a tenant trusts, and a signature of a version, as shown. What judges them is in `signatures.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class SigningKey:
    """A public key that a tenant trusts, until it is revoked. `key_id` is the SHA-256 of its DER form."""

    tenant: str
    key_id: str
    label: str
    algorithm: str
    public_pem: str
    created_by: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class VersionSignature:
    """One signature of a version. `fault` None: it is valid, by a trusted key; else why it counts for nothing."""

    adapter: str
    number: int
    key_id: str
    label: str
    fault: str | None
    actor: str
    signed_at: datetime
    bundle: str
