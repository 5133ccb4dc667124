"""One request: its headers, its query and its body, all bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from registry.decoding import decode
from registry.errors import InvalidValueError
from registry.hub.errors import BodyTooLargeError, ClientGoneError
from registry.principal import Principal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

JSON_BYTES_LIMIT = 4_000_000
QUERY_BYTES_LIMIT = 16_384
QUERY_FIELDS_LIMIT = 256

Document = TypeVar("Document")


class Request:
    """One request. The body can be read once."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        values: Mapping[str, str],
        principal: Principal | None,
        base_url: str,
        request_id: str,
    ) -> None:
        self.method: str = scope["method"]
        self.values = values
        self.base_url = base_url
        self.request_id = request_id
        self._principal = principal
        self._scope = scope
        self._receive = receive
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }

    @property
    def principal(self) -> Principal:
        """Who asks. A route that is signed or open has none."""
        assert self._principal is not None, "a signed or open route has no principal"
        return self._principal

    @property
    def raw_path(self) -> bytes:
        """The path as it was sent."""
        return raw_path_of(self._scope)

    @property
    def raw_query(self) -> bytes:
        """The query as it was sent."""
        raw: bytes = self._scope.get("query_string", b"")
        return raw

    def query(self) -> list[tuple[str, str]]:
        """The fields of the query, in order. Raises InvalidValueError."""
        return _parse_form(self.raw_query, limit_bytes=QUERY_BYTES_LIMIT, fields_limit=QUERY_FIELDS_LIMIT)

    def content_length(self) -> int | None:
        """The length that the client announced. Raises InvalidValueError."""
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not text.isascii() or not text.isdecimal() or len(text) > 15:
            raise InvalidValueError("Content-Length", "it is not a number of bytes")
        return int(text)

    async def pieces(self, *, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises BodyTooLargeError, ClientGoneError."""
        announced = self.content_length()
        if announced is not None and announced > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        received = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece: bytes = message.get("body", b"")
            received += len(piece)
            if received > limit_bytes:
                raise BodyTooLargeError(limit_bytes)
            if piece:
                yield piece
            if not message.get("more_body", False):
                return

    async def body(self, *, limit_bytes: int = JSON_BYTES_LIMIT) -> bytes:
        """The whole body. Raises BodyTooLargeError, ClientGoneError."""
        return b"".join([piece async for piece in self.pieces(limit_bytes=limit_bytes)])

    async def json(self, kind: type[Document], *, limit_bytes: int = JSON_BYTES_LIMIT) -> Document:
        """The body as this struct. Raises InvalidValueError, BodyTooLargeError."""
        return decode_json(await self.body(limit_bytes=limit_bytes), kind)

    async def form(self, *, fields_limit: int) -> list[tuple[str, str]]:
        """The body as the fields of a form, in order. Raises InvalidValueError, BodyTooLargeError."""
        return _parse_form(await self.body(), limit_bytes=JSON_BYTES_LIMIT, fields_limit=fields_limit)


def decode_json(raw: bytes, kind: type[Document]) -> Document:
    """JSON as this struct. Raises InvalidValueError."""
    try:
        return decode(raw, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValueError("body", f"it is not what this route takes ({error})") from error


def raw_path_of(scope: Scope) -> bytes:
    """The path as it was sent, without the query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    return raw.partition(b"?")[0]


def _parse_form(raw: bytes, *, limit_bytes: int, fields_limit: int) -> list[tuple[str, str]]:
    if len(raw) > limit_bytes:
        raise InvalidValueError("query", f"it has more than {limit_bytes:,} bytes")
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, max_num_fields=fields_limit, encoding="utf-8", errors="strict")
    except ValueError as error:
        raise InvalidValueError("query", f"it cannot be read as form fields ({type(error).__name__})") from error
