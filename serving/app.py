"""The web application: routes, guard, error handler and limits around one `Service`.

Beside it, on the same port: the registry's own application (REST and the Hub protocol), where the registry is not one
over HTTP itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from litestar import Litestar
from litestar.datastructures import State

from registry import Registry
from registry.http.app import AsgiApp, Message, Receive, RegistryApp, Scope, Send
from registry.http.request_id import send_request_id
from registry.http.service import RegistryService
from registry.http.settings import HttpSettings
from serving.api.access import require_access
from serving.api.chat import chat_completions
from serving.api.completions import completions
from serving.api.errors import handle_error
from serving.api.health import livez, readyz, startupz
from serving.api.metrics import metrics
from serving.api.models import list_models, show_model
from serving.api.service import Service
from serving.settings import ServingSettings

OWN_ROOT = "/v1/"


def create_service(settings: ServingSettings, registry: Registry) -> Service:
    """The parts of the API process, not yet started."""
    return Service(settings, registry)


def create_app(service: Service) -> Litestar:
    """The application over a service, which it starts and stops with itself."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    return Litestar(
        route_handlers=[chat_completions, completions, list_models, show_model, metrics, livez, readyz, startupz],
        guards=[require_access],
        before_send=[send_request_id],
        exception_handlers={Exception: handle_error},
        lifespan=[lifespan],
        request_max_body_size=service.settings.limits.body_bytes,
        openapi_config=None,
        state=State({"service": service}),
        logging_config=None,
        debug=False,
    )


def create_server_app(service: Service) -> ServerApp:
    """Everything that answers on the server's port."""
    if service.is_remote:
        return ServerApp(create_app(service), None)
    settings = HttpSettings(
        is_loopback=service.settings.is_loopback,
        metrics_open=service.settings.metrics_open,
        upkeep=service.settings.upkeep,
    )
    faces = RegistryService(
        service.registry, settings, authenticator=service.authenticator.of_registry, metrics=service.metrics
    )
    return ServerApp(create_app(service), RegistryApp(faces))


class ServerApp:
    """An ASGI application: `/v1/...` and the probes are the server's, the rest is the registry's where it wants it."""

    def __init__(self, api: Litestar, registry: RegistryApp | None) -> None:
        self._api = cast("AsgiApp", api)  # Litestar has its own names for the same types
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the server's life."""
        if self._registry is None:
            await self._api(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._api(scope, receive, partial(self._live, send))
        elif scope["type"] == "http" and not scope["path"].startswith(OWN_ROOT) and self._registry.takes(scope):
            await self._registry(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    def begin_drain(self) -> None:
        """Let what waits for news of the registry end."""
        if self._registry is not None:
            self._registry.begin_drain()

    async def wait_idle(self) -> None:
        """Return when no transfer to or from the registry is under way."""
        if self._registry is not None:
            await self._registry.wait_idle()

    async def _live(self, send: Send, message: Message) -> None:
        """The registry's work in the background begins after the server's and ends after it."""
        assert self._registry is not None
        if message["type"] == "lifespan.startup.complete":
            await self._registry.start()
        elif message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await self._registry.stop()
        await send(message)
