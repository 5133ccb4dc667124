"""The `x-request-id` of each request: the client's own where it is well formed, else a new one; always sent back."""

from __future__ import annotations

import re
import uuid
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_ACCEPTED = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_KEY = "loraplex_request_id"


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Middleware: gives each request its id and each response the header."""

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        request_id = _id_for(scope)
        state: dict[str, Any] = scope["state"]
        state[_KEY] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        await app(scope, receive, send_with_id)

    return identified


def request_id_of(scope: Scope) -> str:
    """The id of the request that this scope belongs to."""
    request_id: str = scope["state"].get(_KEY, "unknown")
    return request_id


def _id_for(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name.lower() == HEADER and _ACCEPTED.fullmatch(value):
            return value.decode()
    return f"req-{uuid.uuid4().hex}"
