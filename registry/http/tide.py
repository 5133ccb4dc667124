"""Wakes those who wait for the feed to grow: one small question to the database at a time, however many wait.

While nobody waits, nothing is asked. A database that cannot be asked wakes nobody, and is asked again a little later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry.errors import BusyError, StorageError
from registry.principal import Principal
from registry.threads import Threads

POLL_SECONDS = 0.1
OUTAGE_SECONDS = 1.0
THREADS = 2
CLIENTS_LIMIT = 512
CLIENTS_OF_TENANT_LIMIT = 64

logger = logging.getLogger(__name__)


class Tide:
    """How far the feed has come. Used on one event loop; `threads` is where its readers may block too."""

    def __init__(self, newest: Callable[[], int], draining: asyncio.Event) -> None:
        self._newest = newest
        self._draining = draining
        self._height = 0
        self._rising: asyncio.Future[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._waiters = 0
        self._clients: Counter[str | None] = Counter()
        self.threads = Threads("feed", THREADS)

    def close(self) -> None:
        """Ask no more."""
        if self._polling is not None:
            self._polling.cancel()
        self.threads.close()

    @contextmanager
    def client(self, principal: Principal) -> Iterator[None]:
        """A place among those who follow, while the block runs. Raises BusyError."""
        if self._clients.total() >= CLIENTS_LIMIT or self._clients[principal.tenant] >= CLIENTS_OF_TENANT_LIMIT:
            raise BusyError("too many clients follow the events of this server")
        self._clients[principal.tenant] += 1
        try:
            yield
        finally:
            self._clients[principal.tenant] -= 1

    async def wait_past(self, cursor: int, seconds: float) -> bool:
        """Wait until an event of anybody is newer than the cursor; False when the time is over, or the server ends."""
        deadline = time.monotonic() + seconds
        self._waiters += 1
        try:
            while self._height <= cursor:
                left = deadline - time.monotonic()
                if left <= 0 or self._draining.is_set():
                    return False
                await asyncio.wait((self._next_rise(),), timeout=left)
            return True
        finally:
            self._waiters -= 1

    def _next_rise(self) -> asyncio.Future[None]:
        if self._rising is None or self._rising.done():
            self._rising = asyncio.get_running_loop().create_future()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="feed")
        return self._rising

    async def _poll(self) -> None:
        """Ask while somebody waits. A wake that was not needed is harmless: whoever waits looks at the height."""
        while self._waiters and not self._draining.is_set():
            pause_seconds = POLL_SECONDS
            try:
                found = await self.threads.run(self._newest)
            except StorageError as error:
                logger.error("the feed cannot be read: %s", error)
                pause_seconds = OUTAGE_SECONDS
            else:
                if found != self._height:
                    self._height = found
                    self._wake()
            await _wait(self._draining, pause_seconds)
        self._wake()

    def _wake(self) -> None:
        if self._rising is not None and not self._rising.done():
            self._rising.set_result(None)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
