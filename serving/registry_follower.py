"""Follows the registry's feed, so that what is promoted is used at once, and is warm when it is first asked for.

It does: wait for events (in short long polls, where the registry is over HTTP), tell `ResolvedNames` which adapter
changed, and fetch and preload the new version of every name that is in use.
It does not: decide what a name means (the registry does, when it is asked again), or fail: while the feed cannot be
read, names are asked for again after half a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from registry import Registry
from registry.errors import RegistryError
from registry.event import Event
from registry.principal import OPERATOR, Principal
from registry.threads import Threads
from serving.resolved_names import NameInUse, ResolvedNames

WAIT_SECONDS = 2.0
"""Shorter than `resolved_names.SILENCE_SECONDS`: a feed that hangs is noticed."""
POLL_SECONDS = 0.25
"""A registry in this process is asked for news so often: nothing waits for it in a thread, and stopping is quick."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
WARMED_AT_ONCE = 16

logger = logging.getLogger(__name__)

Warm = Callable[[NameInUse], Awaitable[None]]


class RegistryFollower:
    """One task on the event loop, from `start` to `stop`. `warm` makes a name's new version ready; it may be slow."""

    def __init__(
        self, registry: Registry, names: ResolvedNames, warm: Warm, *, is_remote: bool, token: str | None
    ) -> None:
        self._registry = registry
        self._is_remote = is_remote
        self._names = names
        self._warm = warm
        self._token = token
        self._threads = Threads("follow", 1)
        self._task: asyncio.Task[None] | None = None
        self._warming: set[asyncio.Task[None]] = set()
        self._waiting: set[NameInUse] = set()
        self._places = asyncio.Semaphore(WARMED_AT_ONCE)
        self.is_following = False
        self.events = 0
        self.failures = 0

    def start(self) -> None:
        """Begin to follow, in the background."""
        self._task = asyncio.create_task(self._run(), name="registry-follower")

    async def stop(self) -> None:
        """Follow no more. The call that waits for news ends by itself."""
        tasks = [task for task in (self._task, *self._warming) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.close()

    async def _run(self) -> None:
        cursor: int | None = None
        pause_seconds = FIRST_PAUSE_SECONDS
        is_lost = True
        while True:
            try:
                if is_lost:
                    cursor = await self._begin(cursor)
                    is_lost, pause_seconds = False, FIRST_PAUSE_SECONDS
                    self.is_following = True
                wait_seconds = WAIT_SECONDS if self._is_remote else 0.0
                page = await self._threads.run(self._registry.events, OPERATOR, after=cursor, seconds=wait_seconds)
            except RegistryError as error:
                if not is_lost:
                    logger.warning("the registry's feed is lost: %s", error)
                is_lost, self.is_following = True, False
                self.failures += 1
                self._names.lost()
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                continue
            self._names.heard()
            for event in page.events:
                self._take(event)
            cursor = page.cursor
            if not self._is_remote and not page.events:
                await asyncio.sleep(POLL_SECONDS)

    async def _begin(self, cursor: int | None) -> int:
        """Where to go on: at the old cursor, whose later events are still to be heard, or now."""
        follower = await self._threads.run(self._identity)
        page = await self._threads.run(self._registry.events, OPERATOR, after=None)
        self._names.followed_by(follower)
        return page.cursor if cursor is None else min(cursor, page.cursor)

    def _identity(self) -> Principal:
        """Whose events are heard: those of the token that this server asks with."""
        if self._token is None:
            return OPERATOR
        return self._registry.authenticate(self._token)

    def _take(self, event: Event) -> None:
        self.events += 1
        for name in self._names.changed(event.adapter) if event.adapter else ():
            if name in self._waiting:
                continue  # it has not been asked for yet, and will mean what it means then
            self._waiting.add(name)
            warming = asyncio.create_task(self._warm_one(name), name=f"warm-{name.model}")
            self._warming.add(warming)
            warming.add_done_callback(self._warming.discard)

    async def _warm_one(self, name: NameInUse) -> None:
        async with self._places:
            self._waiting.discard(name)
            await self._warm(name)
