"""The access token of Xet uploads: who may send chunks for which repository, and until when.

A grant is signed, not stored, so that every process of the registry can check it, and a client whose token ran out may
continue its session with the next one. It opens nothing but the sessions of its own repository.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error

import msgspec

from registry.decoding import decode
from registry.errors import AuthenticationError
from registry.names import AdapterName

GRANT_SECONDS = 3600
TOKEN_CHARACTERS_LIMIT = 2048
_PURPOSE = b"xet-grant-v1:"


class XetGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an access token says. `actor` names the caller in histories; `expires_at` is a Unix time."""

    tenant: str
    name: str
    actor: str | None
    expires_at: int

    @property
    def adapter(self) -> AdapterName:
        """The repository that is uploaded to."""
        return AdapterName(self.tenant, self.name)


class XetGrants:
    """Signs and checks grants. Its only state is the secret, which every process of a registry shares."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) >= 32, "a secret of at least 256 bits"
        self._secret = secret

    def sign(self, grant: XetGrant) -> str:
        """The access token of a grant."""
        payload = urlsafe_b64encode(msgspec.json.encode(grant)).decode("ascii")
        return f"{payload}.{self._mac(payload)}"

    def check(self, token: str) -> XetGrant:
        """The grant of an access token. Raises AuthenticationError, which never says why."""
        payload, _, mac = token.partition(".")
        if len(token) > TOKEN_CHARACTERS_LIMIT or not token.isascii():
            raise AuthenticationError
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise AuthenticationError
        try:
            grant = decode(urlsafe_b64decode(payload), XetGrant)
        except (msgspec.DecodeError, Base64Error) as error:
            raise AuthenticationError from error
        if grant.expires_at <= time.time():
            raise AuthenticationError
        return grant

    def _mac(self, payload: str) -> str:
        return hmac.new(self._secret, _PURPOSE + payload.encode("ascii"), hashlib.sha256).hexdigest()
