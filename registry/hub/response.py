"""What a handler answers: a status, headers, and bytes that are there or come in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import msgspec

from registry.hub.request import Request

JSON_TYPE = "application/json"
LFS_TYPE = "application/vnd.git-lfs+json"


@dataclass(frozen=True)
class Response:
    """An answer. `pieces` replaces `body` where the content is streamed; its length then stands in `headers`."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: AsyncGenerator[bytes, None] | None = None


def json_response(
    document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON_TYPE
) -> Response:
    """An answer of JSON."""
    return Response(status, {"content-type": media_type} | dict(headers or {}), msgspec.json.encode(document))


def warning_header(topic: str, text: str) -> dict[str, str]:
    """The header that Hub clients log: once per topic in a process, so that each text is a topic of its own."""
    line = header_text(text)
    return {"x-hf-warning": f"{topic}-{sha256(line.encode()).hexdigest()[:12]}; {line}"}


def header_text(text: str) -> str:
    """The text as one line that a header can carry."""
    line = " ".join(text.split())
    return line[:1000].encode("latin-1", "replace").decode("latin-1")


def next_link(request: Request, changes: Mapping[str, str]) -> dict[str, str]:
    """The header that says where the next page is: the same address with these fields of the query changed."""
    kept = [(key, value) for key, value in request.query() if key not in changes]
    query = urlencode(kept + list(changes.items()))
    return {"link": f'<{request.base_url}{request.raw_path.decode("latin-1")}?{query}>; rel="next"'}
