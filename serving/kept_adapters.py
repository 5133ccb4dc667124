"""The adapters that the operator wants kept in memory, by the names of `--keep`.

It does: resolve the names, hold the folders, and tell the engine; again when a name means something else.
It does not: notice that a name has changed (`registry_follower`), or keep anything itself (the engine does).
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from registry.principal import Principal
from serving.adapter_loader import AdapterLoader
from serving.engine_client import EngineClient
from serving.errors import ServingError
from serving.messages import AdapterUse
from serving.served_base import ServedBase

logger = logging.getLogger(__name__)


class KeptAdapters:
    """Used on one event loop, by `Service`."""

    def __init__(self, loader: AdapterLoader, engine: EngineClient, models: tuple[str, ...]) -> None:
        self._loader = loader
        self._engine = engine
        self._models = models
        self._held = AsyncExitStack()

    def has(self, model: str) -> bool:
        """Whether this name is among them."""
        return model in self._models

    async def refresh(self, base: ServedBase) -> None:
        """Keep what the names mean now, and nothing else. Raises ServingError for one that cannot be kept."""
        adapters: tuple[AdapterUse, ...] = ()
        async with AsyncExitStack() as held:
            for model in self._models:
                for target in await self._loader.sides(model, Principal.operator(), base):
                    adapters += await held.enter_async_context(self._loader.hold(target))
            before, self._held = self._held, held.pop_all()
        self._engine.keep(adapters)
        await before.aclose()

    async def refresh_if_possible(self, base: ServedBase) -> None:
        """The same; where it fails, what was kept is kept on."""
        try:
            await self.refresh(base)
        except ServingError as error:
            logger.error("what is kept could not be renewed: %s", error)

    async def close(self) -> None:
        """Let go of the folders."""
        await self._held.aclose()
