"""Large bodies arrive in large pieces and whole, however they are sent; what follows them is answered as ever."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
import uvloop

from registry.http.large_reads import LARGE_BODY_BYTES, READ_BYTES, LargeReads
from registry.server import open_port

SENT_AT_ONCE = 4096


async def told(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answers with what came: its digest, its bytes, the number of its pieces, and whether it came to its end."""
    digest, size, pieces, is_whole = hashlib.sha256(), 0, 0, False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            ENDED.put(size)
            return
        digest.update(message["body"])
        size, pieces = size + len(message["body"]), pieces + 1
        is_whole = not message.get("more_body", False)
    body = json.dumps({"sha256": digest.hexdigest(), "size": size, "pieces": pieces}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ENDED: queue.Queue[int] = queue.Queue()
"""How many bytes had come of the bodies that broke off."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = open_port("127.0.0.1", 0)
    config = uvicorn.Config(told, http=LargeReads, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: uvloop.run(server._serve(sockets=[listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
        yield opened


def answer_of(connection: socket.socket) -> dict[str, Any]:
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(65536)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    document: dict[str, Any] = json.loads(body)
    return document


def sent(connection: socket.socket, body: bytes, *, at_once: int = SENT_AT_ONCE) -> dict[str, Any]:
    connection.sendall(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
    for start in range(0, len(body), at_once):
        connection.sendall(body[start : start + at_once])
    return answer_of(connection)


@pytest.mark.parametrize(
    "size",
    [0, 1, LARGE_BODY_BYTES - 1, LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1, 5 * READ_BYTES, 5 * READ_BYTES + 1, 9_000_001],
)
def test_every_size_comes_whole_and_the_connection_goes_on(connection: socket.socket, size: int) -> None:
    for length in (size, 10, size):
        body = os.urandom(length)
        found = sent(connection, body)
        assert (found["sha256"], found["size"]) == (hashlib.sha256(body).hexdigest(), length)


def test_a_large_body_comes_in_large_pieces(connection: socket.socket) -> None:
    body = os.urandom(40 * READ_BYTES)
    found = sent(connection, body)
    assert found["size"] == len(body)
    assert found["pieces"] <= 60, "the event loop is woken for a read's worth, not for each of 2,500 packets"


def test_a_large_body_in_chunks_of_unknown_number(connection: socket.socket) -> None:
    connection.sendall(b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(40):
        connection.sendall(b"%x\r\n%s\r\n" % (50_000, b"y" * 50_000))
    connection.sendall(b"0\r\n\r\n")
    assert answer_of(connection)["size"] == 2_000_000


def test_a_body_that_waits_for_its_invitation(connection: socket.socket) -> None:
    body = os.urandom(2_000_000)
    head = b"PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    connection.sendall(head)
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body)
    assert answer_of(connection)["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_client_that_leaves_in_between_is_noticed(connection: socket.socket) -> None:
    connection.sendall(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n" + b"z" * 10)
    connection.close()
    assert ENDED.get(timeout=30) < 3_000_000
