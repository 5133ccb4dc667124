"""A proxy between a client and an HTTP server, which makes things go wrong as a plan says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

RECEIVE_BYTES = 1 << 16
IO_SECONDS = 30


class Fault(Enum):
    """What happens to one request."""

    NONE = "it is passed on"
    ERROR_500 = "it is answered with 500, and not passed on"
    SLOW_DOWN = "it is answered with 503, and not passed on"
    CUT_REQUEST = "the connection is closed before the server has the whole request"
    CUT_ANSWER = "the server does it; the connection is closed in the middle of the answer"
    LOSE_ANSWER = "the server does it; the connection is closed without an answer"
    HANG = "nothing is answered, until the client gives up"
    FLIP = "the last byte of the answer's body is another one"
    FLIP_REQUEST = "the last byte of the request's body is another one"


@dataclass(frozen=True)
class Request:
    """What a plan sees of a request. `number` counts from 0."""

    number: int
    method: str
    path: str
    body_bytes: int


Plan = Callable[[Request], Fault]


@dataclass
class FaultProxy:
    """A running proxy. Only its threads change `seen`; a test may set another plan at any time."""

    upstream: tuple[str, int]
    plan: Plan
    endpoint: str = ""
    seen: list[tuple[Request, Fault]] = field(default_factory=list)
    is_closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed."""
        while not self.is_closed:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        client.settimeout(IO_SECONDS)
        with client, suppress(OSError):
            while self._one(client):
                pass

    def _one(self, client: socket.socket) -> bool:
        """One request and its answer; False ends the connection."""
        head, rest = _read_head(client)
        if not head:
            return False
        length = int(_header(head, b"content-length") or 0)
        method, path = (part.decode() for part in head.split(b" ", 2)[:2])
        with self.lock:
            request = Request(len(self.seen), method, path, length)
            fault = self.plan(request)
            self.seen.append((request, fault))
        if fault is Fault.HANG:
            self._wait_for_the_end(client)
            return False
        body = _read_rest(client, rest, length)
        if fault is Fault.ERROR_500:
            client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault is Fault.SLOW_DOWN:
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault is Fault.FLIP_REQUEST and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return self._pass_on(client, head, body, fault, is_head=method == "HEAD")

    def _pass_on(self, client: socket.socket, head: bytes, body: bytes, fault: Fault, *, is_head: bool) -> bool:
        with socket.create_connection(self.upstream, timeout=IO_SECONDS) as server:
            if fault is Fault.CUT_REQUEST:
                server.sendall(head + body[: len(body) // 2])
                return False
            server.sendall(_with_close(head) + body)
            received = bytearray()
            while chunk := server.recv(RECEIVE_BYTES):
                received += chunk
        answer = bytes(received)
        if fault is Fault.LOSE_ANSWER:
            return False
        start = answer.index(b"\r\n\r\n") + 4
        if fault is Fault.CUT_ANSWER:
            client.sendall(answer[: start + (len(answer) - start) // 2] if len(answer) > start else answer[: start - 8])
            return False
        if fault is Fault.FLIP and len(answer) > start and not is_head:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        client.sendall(answer)
        return False

    def _wait_for_the_end(self, client: socket.socket) -> None:
        deadline = time.monotonic() + IO_SECONDS
        client.settimeout(0.1)
        while not self.is_closed and time.monotonic() < deadline:
            try:
                if not client.recv(RECEIVE_BYTES):
                    return
            except TimeoutError:
                continue


@contextmanager
def fault_proxy(upstream: str, plan: Plan = lambda request: Fault.NONE) -> Iterator[FaultProxy]:
    """Run a proxy before the server at this address."""
    parts = urlsplit(upstream)
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultProxy((parts.hostname, parts.port), plan, f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.is_closed = True
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=IO_SECONDS)


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    raw = b""
    while b"\r\n\r\n" not in raw:
        chunk = client.recv(RECEIVE_BYTES)
        if not chunk:
            return b"", b""
        raw += chunk
    head, _, rest = raw.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _read_rest(client: socket.socket, rest: bytes, length: int) -> bytes:
    body = bytearray(rest)
    while len(body) < length:
        chunk = client.recv(RECEIVE_BYTES)
        if not chunk:
            raise ConnectionResetError
        body += chunk
    return bytes(body)


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _with_close(head: bytes) -> bytes:
    """Ask the server to close after its answer, so that the answer's end is known."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
