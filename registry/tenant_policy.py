"""What a tenant demands of adapters that enter: the JSON document in `tenants.policy`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec

from registry.decoding import convert
from registry.errors import InvalidValueError

UPSTREAM_CHARACTERS = 1_000
_UPSTREAM = r"^https?://[^/@?#]+/[^@?#]+\Z"


class TenantPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`unverified_base`: whether an adapter may enter whose base nobody recorded; only shapes and names suggest it.

    `require_signature`: whether an alias moves only to a version that a key of the tenant has signed, with or without a
    policy of its own. `upstream`: where unknown adapters are pulled in from, `https://host/org`, when the tenant first
    reads them.
    """

    unverified_base: Literal["allow", "refuse"] = "allow"
    require_signature: bool = False
    upstream: Annotated[str, msgspec.Meta(max_length=UPSTREAM_CHARACTERS, pattern=_UPSTREAM)] | None = None


def read_tenant_policy(document: str) -> TenantPolicy:
    """The policy as the database keeps it; fields of a newer release are left alone."""
    kept = json.loads(document)
    known = {field: kept[field] for field in TenantPolicy.__struct_fields__ if field in kept}
    return convert(known, TenantPolicy)


def parse_tenant_policy(document: dict[str, Any]) -> TenantPolicy:
    """The policy that somebody sets. Raises InvalidValueError."""
    try:
        return convert(document, TenantPolicy)
    except msgspec.ValidationError as error:
        raise InvalidValueError("policy", str(error)) from error
