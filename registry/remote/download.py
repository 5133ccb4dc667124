"""A file's bytes from a server, in large pieces straight from the socket.

httpx reads 64 KiB at a time through a state machine in Python, which costs more than all else of a download; so
downloads go over the standard library's client, with httpx's certificates. It knows no proxies: where one stands in
between, the caller stays with httpx. What the network does wrong is an httpx.TransportError here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

PIECE_BYTES = 1 << 20


class Body:
    """An answer whose head has come. Used by one thread, once."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self.status_code = response.status

    def iter_raw(self) -> Iterator[bytes]:
        """The pieces. Raises httpx.TransportError, also where they end too early."""
        with _explained():
            while piece := self._response.read(PIECE_BYTES):
                yield piece
            if self._response.length:
                raise httpx.RemoteProtocolError(f"{self._response.length:,} bytes were still to come")


def needs_proxy(url: str) -> bool:
    """Whether the environment names a proxy for this address."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


@contextmanager
def opened(
    url: str, headers: Mapping[str, str], *, connect_seconds: float, answer_seconds: float
) -> Iterator[HTTPResponse]:
    """Ask for what is at this address. Raises httpx.TransportError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    if parts.scheme == "https":
        context = httpx.create_ssl_context()
        connection: HTTPConnection = HTTPSConnection(
            parts.hostname, parts.port, timeout=connect_seconds, context=context
        )
    else:
        connection = HTTPConnection(parts.hostname, parts.port, timeout=connect_seconds)
    try:
        with _explained():
            connection.connect()
            connection.sock.settimeout(answer_seconds)
            connection.request("GET", parts.path, headers=dict(headers))
            response = connection.getresponse()
        yield response
    finally:
        connection.close()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        raise httpx.ReadError(str(error) or type(error).__name__) from error
