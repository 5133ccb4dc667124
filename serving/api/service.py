"""What every request needs, made once at the start and handed to the routes."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import Any

from litestar import Request
from prometheus_client import CollectorRegistry, Gauge

from registry import Registry
from registry.client import RemoteRegistry
from registry.errors import RegistryError
from registry.principal import Principal
from registry.threads import Threads
from serving.adapter_cache import AdapterCache
from serving.adapter_loader import AdapterLoader
from serving.api.adapters_in_use import AdaptersInUse
from serving.api.auth import Authenticator
from serving.api.engine_collector import EngineCollector
from serving.api.instruments import Instruments
from serving.api.limits import Gate
from serving.engine_client import EngineClient
from serving.errors import EngineUnavailableError, ServingError, ShuttingDownError
from serving.grammars.checker import COMPILE_BYTES, COMPILE_SECONDS, GrammarChecker
from serving.grammars.verdicts import WorkerSettings
from serving.kept_adapters import KeptAdapters
from serving.messages import AdapterUse, Ready
from serving.registry_follower import RegistryFollower
from serving.resolved_names import NameInUse, ResolvedNames
from serving.served_base import ServedBase
from serving.settings import ServingSettings
from serving.tokenization import TOKENIZER_FILE
from serving.version_leases import VersionLeases

TOKENIZER_THREADS = 2
PRELOAD_SECONDS = 5.0
"""How long a folder stays for an engine that was told to preload it."""

logger = logging.getLogger(__name__)


class Service:
    """The parts of the API process. `is_draining` and `base` change in its life; the rest is fixed.

    `is_remote`: the registry is on another machine, so that its routes are not this server's.
    """

    def __init__(self, settings: ServingSettings, registry: Registry) -> None:
        self.settings = settings
        self.registry = registry
        self.base: ServedBase | None = None
        self.is_draining = False
        self.started_at = int(time.time())
        self._preloaded = AsyncExitStack()
        self.gate = Gate(settings.limits)
        self.engine = EngineClient(settings.supervision, settings.engine_settings, on_ready=self._on_ready)
        self.is_remote = isinstance(registry, RemoteRegistry)
        names = ResolvedNames(asks_always=not self.is_remote)
        self.leases = VersionLeases(registry)
        cache = AdapterCache(settings.adapters_folder, settings.disk_cache_bytes)
        self.loader = AdapterLoader(registry, cache, names, self.leases)
        self.kept = KeptAdapters(self.loader, self.engine, settings.keep)
        self.follower = RegistryFollower(
            registry, names, self._warm, is_remote=self.is_remote, token=settings.registry_token
        )
        self.authenticator = Authenticator(
            registry, is_loopback=settings.is_loopback, remember_seconds=settings.token_cache_seconds
        )
        self.checker: GrammarChecker | None = None  # made for the base; it is the same in every start of the engine
        self.tokenizer_threads = Threads("tokenize", TOKENIZER_THREADS)
        self.registry_threads = Threads("list", 2)
        self.adapters_in_use = AdaptersInUse()
        self.metrics = CollectorRegistry(auto_describe=False)
        self.instruments = Instruments(self.metrics, lambda: "unknown" if self.base is None else self.base.name)
        followed = "Whether the registry's events are heard: 1 while they are."
        Gauge("loraplex_registry_followed", followed, registry=self.metrics).set_function(
            lambda: float(self.follower.is_following)
        )
        self.metrics.register(
            EngineCollector(self.engine, self.loader, self.gate, self.adapters_in_use, lambda: self.base)
        )

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be worked on."""
        return self.engine.is_ready and not self.is_draining

    async def start(self) -> None:
        """Begin to start the engine; the routes answer meanwhile."""
        await self.loader.start()
        self.engine.start()
        self.follower.start()
        self.leases.start()

    async def stop(self) -> None:
        """End the engine and the threads."""
        self.is_draining = True
        await self.follower.stop()
        await self.engine.stop()
        await self._preloaded.aclose()
        await self.kept.close()
        await self.leases.stop()
        if self.checker is not None:
            await self.checker.close()
        self.loader.close()
        self.authenticator.close()
        self.tokenizer_threads.close()
        self.registry_threads.close()

    async def drain(self, grace_seconds: float) -> bool:
        """Take no new requests and wait for those inside; False when some were left after the grace."""
        self.is_draining = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self.gate.wait_empty()
        except TimeoutError:
            logger.warning("%d sequences were still running after %.0f s of grace", self.gate.inside, grace_seconds)
            return False
        return True

    def running_base(self) -> ServedBase:
        """The base that requests can use now. Raises EngineUnavailableError, ShuttingDownError."""
        if self.is_draining:
            raise ShuttingDownError
        if self.base is None or self.engine.ready is None:
            raise EngineUnavailableError(self.engine.state.value)
        return self.base

    def running_checker(self) -> GrammarChecker:
        """What compiles grammars for the base that runs. Raises EngineUnavailableError, ShuttingDownError."""
        base = self.running_base()
        if self.checker is None:
            self.checker = GrammarChecker(
                WorkerSettings(
                    tokenizer_file=str(base.folder / TOKENIZER_FILE),
                    vocabulary_tokens=base.vocabulary_tokens,
                    end_token_ids=base.end_token_ids,
                    compile_seconds=COMPILE_SECONDS,
                    compile_bytes=COMPILE_BYTES,
                ),
                idle_seconds=self.settings.grammar_idle_seconds,
                judged=self.instruments.grammar_judged,
            )
        return self.checker

    async def _on_ready(self, ready: Ready) -> list[AdapterUse]:
        """The engine is up: read its tokenizer, let the registry know the base so that adapters can name it, and
        fetch what is to be preloaded.
        """
        limit = self.settings.limits.context_tokens
        base = await self.tokenizer_threads.run(ServedBase.from_ready, ready, context_limit_tokens=limit)
        try:
            await self.registry_threads.run(self.registry.register_base, ready.base)
        except RegistryError as error:  # a registry elsewhere may not let us; what is known there can be served
            logger.warning("the base could not be registered: %s", error)
        self.base = base
        if self.engine.was_ready:
            await self.kept.refresh_if_possible(base)
        else:
            await self.kept.refresh(base)
        return [adapter for model in self.settings.preload for adapter in await self._fetch_preload(model, base)]

    async def _fetch_preload(self, model: str, base: ServedBase) -> tuple[AdapterUse, ...]:
        """What one name means, with its canary; the folders stay until the server ends. At the first start it must be
        there.
        """
        adapters: tuple[AdapterUse, ...] = ()
        try:
            for target in await self.loader.sides(model, Principal.operator(), base):
                adapters += await self._preloaded.enter_async_context(self.loader.hold(target))
            return adapters
        except ServingError as error:
            if not self.engine.was_ready:
                raise
            logger.error("%s could not be preloaded: %s", model, error)
            return adapters

    async def _warm(self, name: NameInUse) -> None:
        """Make what the name means now ready, before a request asks for it; its folder stays until it is loaded."""
        if self.base is None:
            return
        if self.kept.has(name.model):
            await self.kept.refresh_if_possible(self.base)
        try:
            async with AsyncExitStack() as held:
                adapters: tuple[AdapterUse, ...] = ()
                for target in await self.loader.sides(name.model, name.principal, self.base):
                    adapters += await held.enter_async_context(self.loader.hold(target))
                for adapter in adapters:
                    self.engine.preload(adapter)
                await asyncio.sleep(PRELOAD_SECONDS if adapters else 0)
        except ServingError as error:  # whoever asks for it will be told
            logger.info("%s is not made ready: %s", name.model, error)


def service_of(request: Request[Any, Any, Any]) -> Service:
    """The service of the application that this request came to."""
    service: Service = request.app.state["service"]
    return service
