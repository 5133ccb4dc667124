"""uvicorn on a port that is open already, with our own signals: what a signal does is its owner's to say.

Both servers use it. uvicorn by itself would close the port before the requests inside have finished.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from registry.http.large_reads import LargeReads
from registry.listening import BACKLOG, ending_signals

KEEP_ALIVE_SECONDS = 5


class PortServer(uvicorn.Server):
    """One ASGI application on one port, until its owner sets `should_exit`, or `force_exit` too: at once.

    On its event loop it calls `on_signal` at each SIGTERM and SIGINT, and `on_started` once, when it answers requests.
    """

    def __init__(
        self,
        app: Any,
        *,
        close_seconds: int,
        keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
        on_signal: Callable[[], None],
        on_started: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=LargeReads,
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                ws="none",
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=keep_alive_seconds,
                timeout_graceful_shutdown=close_seconds,
            )
        )
        self._on_signal = on_signal
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals on the event loop while the server runs."""
        with ending_signals(self._on_signal):
            yield
