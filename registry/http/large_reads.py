"""uvicorn's HTTP protocol for uploads: the event loop is woken for much of a large body at once.

The socket's low-water mark (SO_RCVLOWAT) does it: it is as high as one read of the event loop while so many bytes of
the body are left, as high as what is left at its end, and one byte otherwise. A client that hangs up is noticed as
ever, and so is one that sends slowly: nothing but the size of the pieces changes.

Given to `uvicorn.Config(http=LargeReads)`.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

READ_BYTES = 256_000
"""What uvloop reads at once."""
LARGE_BODY_BYTES = 1 << 20


class LargeReads(HttpToolsProtocol):
    """One connection. uvicorn and its parser call it, on the event loop."""

    _body_left_bytes = 0
    _mark_bytes = 1

    def data_received(self, data: bytes) -> None:
        """Parse, then wait for as much as can still come."""
        super().data_received(data)
        wanted = max(1, min(self._body_left_bytes, READ_BYTES))
        if wanted != self._mark_bytes and self.scheme == "http":
            self._mark_bytes = wanted
            connection = self.transport.get_extra_info("socket")
            with suppress(OSError, TypeError, AttributeError):  # closed, or no TCP socket: it reads as it would without
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def on_headers_complete(self) -> None:
        """Note how large the body will be."""
        super().on_headers_complete()
        announced = next((value for name, value in self.headers if name == b"content-length"), b"0")
        size = int(announced) if announced.isdigit() else 0
        self._body_left_bytes = size if size >= LARGE_BODY_BYTES else 0

    def on_body(self, body: bytes) -> None:
        """Count it. The first piece that waits for the application is handed over as it is, not copied twice."""
        self._body_left_bytes = max(0, self._body_left_bytes - len(body))
        if not self.cycle.body:
            self.cycle.body, body = body, b""  # type: ignore[assignment]  # it is only added to, and made bytes
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing is left of this body."""
        self._body_left_bytes = 0
        super().on_message_complete()
