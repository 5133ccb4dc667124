"""Signs what is sent to webhooks, by the Standard Webhooks specification 1.0 (symmetric, `v1`).

A receiver checks a delivery with `verify`, or with any library of the specification. The secret is `whsec_` and base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

from registry.errors import AuthenticationError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the mark that the specification gives to secrets
SECRET_BYTES = 32
TOLERANCE_SECONDS = 300


def new_secret() -> str:
    """A random secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers that go with the body."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + _signature(secret, message_id, str(timestamp), body),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> str:
    """The message's id, by which a receiver knows a repetition. `headers` have lower-case names.

    Raises AuthenticationError for a wrong signature, and for a time that is more than five minutes off.
    """
    try:
        message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        offered = headers["webhook-signature"].split(" ")
        is_recent = abs(now - int(timestamp)) <= TOLERANCE_SECONDS
        expected = "v1," + _signature(secret, message_id, timestamp, body)
    except (KeyError, ValueError, binascii.Error) as error:
        raise AuthenticationError from error
    if not is_recent or not any(hmac.compare_digest(expected.encode(), each.encode()) for each in offered):
        raise AuthenticationError
    return message_id


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    content = f"{message_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
