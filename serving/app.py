"""The web application: routes, guard, error handler and limits around one `Service`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State

from registry import Registry
from serving.api.access import require_access
from serving.api.chat import chat_completions
from serving.api.completions import completions
from serving.api.errors import handle_error
from serving.api.health import livez, readyz, startupz
from serving.api.metrics import metrics
from serving.api.models import list_models, show_model
from registry.http.request_id import send_request_id
from serving.api.service import Service
from serving.settings import ServingSettings


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
