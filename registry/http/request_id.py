"""The `x-request-id` of each request: the client's own where it is well formed, else a new one; always sent back."""

from __future__ import annotations

import re
import uuid

from litestar.types import Message, Scope

HEADER = b"x-request-id"
_ACCEPTED = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_KEY = "loraplex_request_id"


def request_id_of(scope: Scope) -> str:
    """The id of the request that this scope belongs to; the same at every call."""
    request_id: str = scope["state"].setdefault(_KEY, _id_for(scope))
    return request_id


async def send_request_id(message: Message, scope: Scope) -> None:
    """Litestar `before_send` hook: every response carries the id, errors of the framework too."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (HEADER, request_id_of(scope).encode())]


def _id_for(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name.lower() == HEADER and _ACCEPTED.fullmatch(value):
            return value.decode()
    return f"req-{uuid.uuid4().hex}"
