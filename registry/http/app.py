"""The registry's whole HTTP application: the REST API and the Hub protocol on one port.

    what the Hub protocol has a route for         the Hub (`registry/hub/app.py`), and pages for browsers
    /registry/...  /livez  /readyz  /metrics      REST (Litestar, `rest.py`), and 404 for everything else

It counts requests and bytes of both, and starts and stops what works in the background. It may run alone
(`registry/server.py`) or beside the server's own application (`serving/app.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any, cast
from urllib.parse import quote

from registry.http.rest import create_rest_app
from registry.http.service import RegistryService
from registry.http.settings import HttpSettings
from registry.hub.app import create_hub_app
from registry.hub.context import HubSettings
from registry.registry import Registry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REST_ROOT = "registry"
OWN_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
REST, HUB = "rest", "hub"
CLIENT_GONE = 499


def create_registry_app(reg: Registry, settings: HttpSettings) -> RegistryApp:
    """The application over an open registry, which it does not close."""
    return RegistryApp(RegistryService(reg, settings))


class RegistryApp:
    """An ASGI application that decides by the path. Started and stopped by the lifespan protocol, or by its owner.

    It owns the count of the requests inside.
    """

    def __init__(self, service: RegistryService) -> None:
        self.service = service
        self._rest = create_rest_app(service)
        self._hub = create_hub_app(
            service.registry,
            authenticate=service.authenticator.principal_of_scope,
            settings=HubSettings(public_url=service.settings.public_url, own_url=service.settings.own_url),
        )
        self._background = AsyncExitStack()
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Begin the work in the background: deliveries to webhooks, and upkeep."""
        registry, run = self.service.registry, self.service.transfers.run
        courier = registry.courier()
        courier.start()
        self._background.push_async_callback(run, courier.stop)
        if self.service.settings.upkeep:
            caretaker = registry.caretaker(self.service.instruments.upkeep_ran)
            caretaker.start()
            self._background.push_async_callback(run, caretaker.stop)

    async def stop(self) -> None:
        """End it, and the threads."""
        self.begin_drain()
        await self._background.aclose()
        self._hub.close()
        self.service.close()

    def begin_drain(self) -> None:
        """Turn unready, and let what waits for news end."""
        self.service.draining.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            path = scope["path"]
            if path in OWN_PATHS or is_api_path(path) or not self._is_for_hub(scope):
                rest = cast("AsgiApp", self._rest)  # Litestar has its own names for the same types
                await self._counted(rest, REST, scope, receive, send)
            else:
                await self._counted(self._hub, HUB, scope, receive, send)

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for the Hub or the REST API, rather than for an application beside this one."""
        return is_api_path(scope["path"]) or self._is_for_hub(scope)

    async def wait_idle(self) -> None:
        """Return when no request is inside."""
        await self._idle.wait()

    def _is_for_hub(self, scope: Scope) -> bool:
        return self._hub.takes(scope.get("raw_path") or quote(scope["path"]).encode()) or self._hub.shows(scope)

    async def _counted(self, app: AsgiApp, face: str, scope: Scope, receive: Receive, send: Send) -> None:
        status, received_bytes, sent_bytes = CLIENT_GONE, 0, 0
        self._inside += 1
        self._idle.clear()

        async def counting_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, counting_receive, counting_send)
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()
            self.service.instruments.request_ended(face, status, received_bytes=received_bytes, sent_bytes=sent_bytes)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def is_api_path(path: str) -> bool:
    """Whether a path is certainly the REST API's."""
    return path.split("/", 2)[1:2] == [REST_ROOT]
