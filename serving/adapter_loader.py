"""From the `model` of a request to an adapter that the engine can read.

It does: resolve a name through the registry once per request, choose a side where a canary runs, refuse an adapter of
another base, fetch each version (of a mixture: its experts too) once into the disk cache, and pin it while a request
uses it.
It does not: load tensors (the engine) or judge an adapter (the registry did, at publish).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from registry import Registry
from registry.canary import gets_canary
from registry.errors import NotFoundError, PermissionDeniedError, RegistryError, StorageError
from registry.principal import OPERATOR, Principal
from registry.threads import Threads
from registry.version import Split, Version
from serving.adapter_cache import AdapterCache
from serving.errors import AdapterBaseMismatchError, ModelNotFoundError, RegistryUnavailableError
from serving.messages import AdapterUse
from serving.resolved_names import ResolvedNames
from serving.served_base import ServedBase
from serving.target import Side, Target
from serving.version_leases import VersionLeases

REGISTRY_THREADS = 4
FETCH_THREADS = 4
EXPERTS_KNOWN = 4096

logger = logging.getLogger(__name__)


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
        self._experts: OrderedDict[str, Version] = OrderedDict()
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
        if target.version is None:
            yield ()
            return
        async with AsyncExitStack() as held:
            own = await held.enter_async_context(self._hold(target.version, (target.principal,)))
            asking = (target.principal, OPERATOR)
            experts = [
                await held.enter_async_context(self._hold(await self._expert(digest, asking), asking))
                for digest in target.version.experts
            ]
            yield (msgspec.structs.replace(own, experts=tuple(experts)),)

    @asynccontextmanager
    async def _hold(self, version: Version, asking: Sequence[Principal]) -> AsyncIterator[AdapterUse]:
        with self._leases.using(version):
            while not self._cache.has(version):
                await self._fetch_once(version, asking)
            self._cache.pin(version)
            try:
                yield AdapterUse(digest=version.digest, folder=str(self._cache.folder_of(version)))
            finally:
                self._cache.unpin(version)
                self._make_room()

    async def _expert(self, digest: str, asking: Sequence[Principal]) -> Version:
        """An expert of a mixture that the first of these may read. A digest means one content: it is asked for once.

        Who may read a mixture is served by its experts, also by those that only the last one, this server, may read.
        """
        if (known := self._experts.get(digest)) is not None:
            self._experts.move_to_end(digest)
            return known
        reason: RegistryError | None = None
        for principal in asking:
            try:
                version = await self._registry_threads.run(self._registry.resolve, digest, principal=principal)
            except RegistryError as error:
                reason = error
                continue
            self._experts[digest] = version
            if len(self._experts) > EXPERTS_KNOWN:
                self._experts.popitem(last=False)
            return version
        logger.error("the expert %s of a mixture cannot be read: %s", digest, reason)
        raise RegistryUnavailableError from reason

    async def _fetch_once(self, version: Version, asking: Sequence[Principal]) -> None:
        """Everybody who waits for a version waits for the same fetch; one who leaves does not end it."""
        fetch = self._fetches.get(version.digest)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(version, asking), name=f"fetch-{version.digest[:20]}")
            self._fetches[version.digest] = fetch
            fetch.add_done_callback(lambda done: self._forget(version.digest, done))
        await asyncio.shield(fetch)

    def _forget(self, digest: str, fetch: asyncio.Task[None]) -> None:
        self._fetches.pop(digest, None)
        if not fetch.cancelled():
            fetch.exception()  # seen, although everybody who waited may have left

    async def _fetch(self, version: Version, asking: Sequence[Principal]) -> None:
        folder = self._cache.folder_of(version)
        if not await self._fetch_threads.run(self._cache.is_whole, version):
            try:
                await self._pull(version, folder, asking)
            except (RegistryError, OSError) as error:
                logger.error("adapter %s could not be fetched: %s", version.digest, error)
                raise RegistryUnavailableError from error
            self.fetched += 1
        self._cache.add(version)
        # Pinned meanwhile: the newcomer, which nobody holds yet, must not be the one to go.
        self._cache.pin(version)
        self._make_room()
        self._cache.unpin(version)

    async def _pull(self, version: Version, folder: Path, asking: Sequence[Principal]) -> None:
        """On behalf of the first of these who may read it."""
        for principal in asking:
            try:
                await self._fetch_threads.run(self._registry.pull, version, folder, principal=principal)
            except (NotFoundError, PermissionDeniedError):
                if principal is asking[-1]:
                    raise
            else:
                return

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
