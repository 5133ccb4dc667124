"""A network that breaks on purpose: a TCP proxy that cuts or damages what comes back from a server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK_BYTES = 4096


@dataclass
class CuttingProxy:
    """Each new connection takes the next fault: the number of bytes that come back before it is cut (None: all).

    `flip_at` damages the byte at this place of what comes back on every connection.
    """

    url: str
    faults: list[int | None] = field(default_factory=list)
    flip_at: int | None = None
    connections: int = 0


@contextmanager
def cutting_proxy(upstream: str) -> Iterator[CuttingProxy]:
    """Stand in front of the server at this address."""
    target = urlsplit(upstream)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = CuttingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            proxy.connections += 1
            limit = proxy.faults.pop(0) if proxy.faults else None
            server = socket.create_connection((target.hostname or "", target.port or 0))
            threading.Thread(target=_pump, args=(client, server, None, None), daemon=True).start()
            threading.Thread(target=_pump, args=(server, client, limit, proxy.flip_at), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _pump(source: socket.socket, target: socket.socket, limit: int | None, flip_at: int | None) -> None:
    passed = 0
    with suppress(OSError):
        while data := bytearray(source.recv(CHUNK_BYTES)):
            if flip_at is not None and passed <= flip_at < passed + len(data):
                data[flip_at - passed] ^= 1
            if limit is not None and passed + len(data) >= limit:
                target.sendall(data[: limit - passed])
                break
            target.sendall(data)
            passed += len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes the other thread, too, which then finds nothing
        end.close()
