"""From the `model` of a request to an adapter that the engine can read.

It does: resolve a name through the registry once per request, choose a side where a canary runs, refuse an adapter of
another base, fetch each version once into the disk cache, and pin it while a request uses it.
It does not: load tensors (the engine) or judge an adapter (the registry did, at publish).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from registry import Registry
from registry.canary import gets_canary
from registry.errors import RegistryError, StorageError
from registry.principal import OPERATOR, Principal
from registry.threads import Threads
from registry.version import Split, Version
from serving.adapter_cache import AdapterCache
from serving.errors import AdapterBaseMismatchError, ModelNotFoundError, RegistryUnavailableError
from serving.messages import AdapterUse
from serving.resolved_names import ResolvedNames
from serving.served_base import SHORT_DIGITS, ServedBase
from serving.version_leases import VersionLeases

REGISTRY_THREADS = 4
FETCH_THREADS = 4

logger = logging.getLogger(__name__)


class Side(StrEnum):
    """Which version of an alias with a canary serves a request."""

    STABLE = "stable"
    CANARY = "canary"


@dataclass(frozen=True)
class Target:
    """What will serve a request, fixed from its admission to its end. `version` is None for the base alone.

    `side` is None where no canary runs on what the client named. `principal` is who may read the version: a registry
    over HTTP is asked for the files on its behalf.
    """

    base: ServedBase
    version: Version | None
    side: Side | None = None
    principal: Principal = OPERATOR

    @property
    def name(self) -> str:
        """How an answer names it: the base, or `acme/text2sql@3`."""
        return self.base.name if self.version is None else f"{self.version.adapter}@{self.version.number}"

    @property
    def digest(self) -> str | None:
        """The adapter's identity."""
        return None if self.version is None else self.version.digest

    @property
    def fingerprint(self) -> str:
        """Short identity of base and adapter together, for `system_fingerprint`."""
        parts = ["lpx", self.base.short_fingerprint]
        if self.version is not None:
            parts.append(self.version.digest.removeprefix("sha256:")[:SHORT_DIGITS])
        return "-".join(parts)


class AdapterLoader:
    """Resolves and fetches. Used on one event loop; what blocks runs in its threads."""

    def __init__(
        self,
        registry: Registry,
        cache: AdapterCache,
        names: ResolvedNames | None = None,
        leases: VersionLeases | None = None,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._names = names or ResolvedNames(asks_always=True)
        self._leases = leases or VersionLeases(registry)
        self._registry_threads = Threads("resolve", REGISTRY_THREADS)
        self._fetch_threads = Threads("fetch", FETCH_THREADS)
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self.fetched = 0

    @property
    def cache(self) -> AdapterCache:
        """The account of the folders on disk."""
        return self._cache

    async def start(self) -> None:
        """Make the cache folder ready."""
        await self._fetch_threads.run(self._cache.prepare)

    def close(self) -> None:
        """Take no further requests."""
        for fetch in self._fetches.values():
            fetch.cancel()
        self._registry_threads.close()
        self._fetch_threads.close()

    async def resolve(
        self, model: str, principal: Principal, base: ServedBase, *, request_key: str | None = None
    ) -> Target:
        """What `model` means now for this client; while the registry is down, what it meant when it was last asked.

        Where a canary runs, equal keys get the same side; without a key each request is dealt anew.
        Raises ModelNotFoundError (also for another tenant's private adapter), AdapterBaseMismatchError,
        RegistryUnavailableError.
        """
        if base.is_named(model):
            return Target(base, None)
        split = self._names.current(principal, model) or await self._ask(model, principal)
        version, side = _choose(split, request_key)
        return _target(base, version, side, principal)

    async def sides(self, model: str, principal: Principal, base: ServedBase) -> tuple[Target, ...]:
        """Every target that `model` may mean to a request now: the stable one first, then the canary's, if one runs.

        Raises as `resolve` does.
        """
        if base.is_named(model):
            return (Target(base, None),)
        split = self._names.current(principal, model) or await self._ask(model, principal)
        if split.candidate is None:
            return (_target(base, split.stable, None, principal),)
        stable = _target(base, split.stable, Side.STABLE, principal)
        return stable, _target(base, split.candidate, Side.CANARY, principal)

    async def _ask(self, model: str, principal: Principal) -> Split:
        """What the registry says now, or said last if it cannot be asked."""
        asked_at, changes = time.monotonic(), self._names.changes
        try:
            split = await self._registry_threads.run(self._registry.resolve_split, model, principal=principal)
        except StorageError as error:
            logger.error("registry failed while resolving: %s", error)
            if (known := self._names.last(principal, model)) is None:
                raise RegistryUnavailableError from error
            return known
        except RegistryError:  # unknown, not readable, or no name at all: the client learns no difference
            self._names.forget(principal, model)
            raise ModelNotFoundError(model) from None
        self._names.remember(principal, model, split, asked_at=asked_at, changes=changes)
        return split

    @asynccontextmanager
    async def hold(self, target: Target) -> AsyncIterator[tuple[AdapterUse, ...]]:
        """The target's adapter as verified files, which stay while the block runs. Nothing for the base alone."""
        version = target.version
        if version is None:
            yield ()
            return
        with self._leases.using(version):
            while not self._cache.has(version):
                await self._fetch_once(version, target.principal)
            self._cache.pin(version)
            try:
                yield (AdapterUse(digest=version.digest, folder=str(self._cache.folder_of(version))),)
            finally:
                self._cache.unpin(version)
                self._make_room()

    async def _fetch_once(self, version: Version, principal: Principal) -> None:
        """Everybody who waits for a version waits for the same fetch; one who leaves does not end it."""
        fetch = self._fetches.get(version.digest)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(version, principal), name=f"fetch-{version.digest[:20]}")
            self._fetches[version.digest] = fetch
            fetch.add_done_callback(lambda done: self._forget(version.digest, done))
        await asyncio.shield(fetch)

    def _forget(self, digest: str, fetch: asyncio.Task[None]) -> None:
        self._fetches.pop(digest, None)
        if not fetch.cancelled():
            fetch.exception()  # seen, although everybody who waited may have left

    async def _fetch(self, version: Version, principal: Principal) -> None:
        folder = self._cache.folder_of(version)
        if not await self._fetch_threads.run(self._cache.is_whole, version):
            try:
                await self._fetch_threads.run(self._registry.pull, version, folder, principal=principal)
            except (RegistryError, OSError) as error:
                logger.error("adapter %s could not be fetched: %s", version.digest, error)
                raise RegistryUnavailableError from error
            self.fetched += 1
        self._cache.add(version)
        # Pinned meanwhile: the newcomer, which nobody holds yet, must not be the one to go.
        self._cache.pin(version)
        self._make_room()
        self._cache.unpin(version)

    def _make_room(self) -> None:
        """Keep the cache within its bound; deleting happens in the background."""
        if out := self._cache.evict():
            removal = asyncio.create_task(self._fetch_threads.run(_remove, out))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)


def _target(base: ServedBase, version: Version, side: Side | None, principal: Principal) -> Target:
    if version.base_fingerprint != base.fingerprint:
        name = f"{version.adapter}@{version.number}"
        raise AdapterBaseMismatchError(name, expected=version.base_fingerprint, found=base.fingerprint)
    return Target(base, version, side, principal)


def _choose(split: Split, request_key: str | None) -> tuple[Version, Side | None]:
    canary, candidate = split.canary, split.candidate
    if canary is None or candidate is None:
        return split.stable, None
    key = secrets.token_hex(8) if request_key is None else request_key
    alias = f"{canary.adapter}@{canary.alias}"
    if gets_canary(alias=alias, digest=canary.digest, key=key, permille=canary.permille):
        return candidate, Side.CANARY
    return split.stable, Side.STABLE


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
