"""Runs the application on a port, and is the one place that handles signals and draining.

SIGTERM or SIGINT: unready at once and no new requests, those inside finish within the grace, then the port closes and
the engine ends. A second signal ends without waiting. The server also ends when the engine cannot be started again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from registry.http.port_server import PortServer
from registry.listening import listen
from serving.api.service import Service
from serving.app import create_server_app
from serving.errors import SettingsError
from serving.messages import Ready

CLOSE_SECONDS = 2

logger = logging.getLogger(__name__)


def open_port(host: str, port: int) -> socket.socket:
    """Take the port before anything slow begins. Port 0 is any free one. Raises SettingsError."""
    try:
        return listen(host, port)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}). Is another server running there? "
            "Choose another with --port."
        ) from error


async def run_server(service: Service, listener: socket.socket, *, on_ready: Callable[[Ready], None]) -> None:
    """Serve until a signal. `on_ready` runs once, when the first request can be answered.

    Raises EngineError when the engine could not be started, at first or again.
    """
    server = _DrainingServer(service)
    serving = asyncio.create_task(server.serve(listener), name="http")
    watching = asyncio.create_task(_watch(service, server, on_ready), name="watch")
    try:
        await serving
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    if not watching.cancelled() and (error := watching.exception()) is not None:
        raise error
    if service.engine.failure is not None:
        raise service.engine.failure


async def _watch(service: Service, server: _DrainingServer, on_ready: Callable[[Ready], None]) -> None:
    """Announce the first readiness, and end the server when the engine has been given up."""
    try:
        if (ready := await service.engine.wait_settled()) is not None:
            on_ready(ready)
        await service.engine.wait_given_up()
    finally:
        server.end()


class _DrainingServer:
    """The application on its port, and its end: the first signal drains, the second does not wait."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._app = create_server_app(service)
        self._port = PortServer(self._app, close_seconds=CLOSE_SECONDS, on_signal=self._on_signal)
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Answer requests until the end."""
        await self._port.serve(sockets=[listener])

    def end(self) -> None:
        """Close the port, with whoever is inside."""
        self._port.should_exit = True

    def _on_signal(self) -> None:
        if self._draining is None:
            logger.info("draining: no new requests, %d sequences inside", self._service.gate.inside)
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self._service.engine.fail_in_flight()
            self.end()

    async def _drain(self) -> None:
        """Requests and transfers have the same grace, at the same time."""
        grace_seconds = self._service.settings.grace_seconds
        self._app.begin_drain()
        transfers = asyncio.create_task(self._app.wait_idle(), name="transfers")
        is_empty, _ = await asyncio.gather(
            self._service.drain(grace_seconds), asyncio.wait([transfers], timeout=grace_seconds)
        )
        transfers.cancel()
        if not is_empty:
            self._service.engine.fail_in_flight()
        self.end()
