"""Upload addresses that carry their own right: clients send neither a token nor headers to them.

A signature covers the tenant, the blob's digest and size, what may be done and until when, under the registry's secret.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import urlencode

from registry.errors import InvalidValueError, PermissionDeniedError
from registry.file_entry import Blob
from registry.hub.request import Request

UPLOAD_PATH = "/api/lfs/{tenant}/{oid}"
_PURPOSE = "lfs-upload-v1"
_HEX = "0123456789abcdef"


@dataclass(frozen=True)
class UploadGrant:
    """What an address allows. `session` is empty for an upload in one piece; `part` counts from 1, 0 completes it."""

    tenant: str
    blob: Blob
    expires_at: int
    session: str = ""
    part: int = 0

    def link(self, base_url: str, secret: bytes) -> str:
        """The address."""
        fields = {"size": self.blob.size, "expires": self.expires_at, "session": self.session, "part": self.part}
        query = urlencode({**fields, "signature": _sign(self, secret)})
        return f"{base_url}/api/lfs/{self.tenant}/{self.blob.sha256}?{query}"


def check_grant(request: Request, secret: bytes) -> UploadGrant:
    """The grant of a request's address. Raises PermissionDeniedError, InvalidValueError."""
    fields = dict(request.query())
    oid = request.values["oid"]
    if len(oid) != 64 or oid.strip(_HEX):
        raise InvalidValueError("oid", "it is not a SHA-256 in hexadecimal")
    grant = UploadGrant(
        tenant=request.values["tenant"],
        blob=Blob(oid, _number(fields, "size")),
        expires_at=_number(fields, "expires"),
        session=fields.get("session", ""),
        part=_number(fields, "part"),
    )
    signature = fields.get("signature", "").encode("utf-8", "replace")
    if not hmac.compare_digest(_sign(grant, secret).encode("ascii"), signature):
        raise PermissionDeniedError("upload to", "this address", "its signature is not valid; ask for a new address")
    if grant.expires_at <= time.time():
        raise PermissionDeniedError("upload to", "this address", "it has expired; ask for a new address")
    return grant


def _sign(grant: UploadGrant, secret: bytes) -> str:
    parts = (_PURPOSE, grant.tenant, grant.blob.sha256, grant.blob.size, grant.expires_at, grant.session, grant.part)
    return hmac.new(secret, "\0".join(map(str, parts)).encode(), hashlib.sha256).hexdigest()


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise InvalidValueError(name, "it is not a number")
    return int(text)
