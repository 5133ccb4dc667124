"""What every request to the registry needs, made once at the start and handed to the routes."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request
from prometheus_client import CollectorRegistry

from registry.http.authenticator import Authenticator
from registry.http.instruments import Instruments
from registry.http.settings import HttpSettings
from registry.http.tide import Tide
from registry.principal import Principal
from registry.registry import Registry
from registry.threads import Threads

LOOKUP_THREADS = 4


class RegistryService:
    """The parts of the registry's faces. `draining` is set once, when the server begins to end; the rest is fixed.

    What waits for something to happen (long polls, event streams) ends when `draining` is set.
    """

    def __init__(
        self,
        registry: Registry,
        settings: HttpSettings,
        *,
        authenticator: Authenticator | None = None,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        self.registry = registry
        self.settings = settings
        self.authenticator = authenticator or Authenticator(
            registry,
            is_loopback=settings.is_loopback,
            remember_seconds=settings.token_cache_seconds,
            operator_secret=settings.operator_secret,
        )
        self.metrics = metrics if metrics is not None else CollectorRegistry(auto_describe=False)
        self.instruments = Instruments(self.metrics, registry.tally)
        self.lookups = Threads("lookup", LOOKUP_THREADS)
        self.transfers = Threads("transfer", settings.transfer_threads)
        self.draining = asyncio.Event()
        self.tide = Tide(registry.newest_event, self.draining)

    def close(self) -> None:
        """End the threads."""
        self.draining.set()
        self.lookups.close()
        self.transfers.close()
        self.tide.close()
        self.authenticator.close()


def service_of(request: Request[Any, Any, Any]) -> RegistryService:
    """The service of the application that this request came to."""
    service: RegistryService = request.app.state["service"]
    return service


def registry_of(request: Request[Any, Any, Any]) -> Registry:
    """The registry that this request is about."""
    return service_of(request).registry


def caller_of(request: Request[Any, Any, Any]) -> Principal:
    """Who is asking; `access.py` has put it there."""
    caller: Principal = request.auth
    return caller
