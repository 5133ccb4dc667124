"""What a server is to the machine that it runs on: a port, and the signals that end it. For both servers."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (names them, does not bind them)


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 is any free one. Raises OSError where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Where a client on this machine reaches what was told to listen on `host`."""
    name = EVERY_ADDRESS.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


@contextmanager
def ending_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call this on the running event loop, each time, and do nothing else."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
