"""Server-sent events: a stream of chunks that ends with `data: [DONE]`, and with an error event first if it failed.

It does: send, notice a client that has gone or reads too slowly, and give back what the request took.
It does not: make chunks (`generation`, `chat`, `completions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from litestar.types import Receive, Scope, Send

from serving.api.dialect import Document
from serving.api.disconnect import cancel_and_wait, client_left
from serving.api.errors import document_of, log_unexpected
from serving.errors import ClientGoneError

DONE = b"data: [DONE]\n\n"
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}

End = Callable[[BaseException | None], Awaitable[None]]


class EventStream:
    """An ASGI response. `end` is called once, with the error that ended the stream, if any."""

    def __init__(
        self,
        chunks: AsyncIterator[Document],
        *,
        headers: dict[str, str],
        request_id: str,
        send_seconds: float,
        end: End,
    ) -> None:
        self._chunks = chunks
        self._headers = HEADERS | headers
        self._request_id = request_id
        self._send_seconds = send_seconds
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client has gone."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(client_left(receive))
        error: BaseException | None = None
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            error = sending.result() if sending.done() else ClientGoneError()
        except BaseException as unexpected:
            error = unexpected
            raise
        finally:
            await cancel_and_wait(sending, leaving)
            await self._end(error)

    async def _send_all(self, send: Send) -> Exception | None:
        """Returns the error that the client was told about, or None."""
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        error: Exception | None = None
        try:
            async for chunk in self._chunks:
                await self._send_event(send, msgspec.json.encode(chunk))
        except ClientGoneError as gone:
            return gone
        except Exception as failure:  # noqa: BLE001 (the border: the client is told, the log has the stack)
            log_unexpected(failure, self._request_id)
            await self._send_event(send, msgspec.json.encode(document_of(failure)))
            error = failure
        await send({"type": "http.response.body", "body": DONE, "more_body": False})
        return error

    async def _send_event(self, send: Send, data: bytes) -> None:
        """Raises ClientGoneError when the client does not read."""
        try:
            async with asyncio.timeout(self._send_seconds):
                await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
        except TimeoutError:
            raise ClientGoneError from None
