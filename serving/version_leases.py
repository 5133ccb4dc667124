"""Leases in the registry on the versions that this server has in use, so that nobody deletes them by mistake.

It does: remember which versions requests hold or used a short while ago, lease them within a second, renew the leases
in the background, and give them back at the end. If the server dies, they run out after LEASE.
It does not: fail, or hold a request up. A registry that cannot be asked, or lets this server lease nothing, is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial

from registry import Registry
from registry.errors import RegistryError
from registry.threads import Threads
from registry.version import Version

LEASE = timedelta(seconds=180)
RENEW_SECONDS = 60.0
GATHER_SECONDS = 0.2
"""New versions are leased together, this long after the first of them."""
USED_SECONDS = 600.0
"""A version counts as in use this long after the last request: it is still loaded, or a few bytes away from it."""
HOST_CHARACTERS = 60
VERSIONS_PER_CALL = 500

logger = logging.getLogger(__name__)


class VersionLeases:
    """One task on the event loop, from `start` to `stop`; `using` may be called at any time on the same loop."""

    def __init__(self, registry: Registry, *, renew_seconds: float = RENEW_SECONDS) -> None:
        self._registry = registry
        self._renew_seconds = renew_seconds
        self._threads = Threads("lease", 1)
        self._users: Counter[str] = Counter()
        self._used_at: dict[str, float] = {}
        self._leased: set[str] = set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.holder = f"{socket.gethostname()[:HOST_CHARACTERS]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.failures = 0

    def start(self) -> None:
        """Begin to lease, in the background."""
        self._task = asyncio.create_task(self._run(), name="version-leases")

    async def stop(self) -> None:
        """Lease no more, and give back what is leased."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._leased:
            await self._ask(lambda: self._registry.release_leases(self.holder))
        self._threads.close()

    @contextmanager
    def using(self, version: Version) -> Iterator[None]:
        """The version is in use while the block runs, and for a while after it."""
        ref = f"{version.adapter}@{version.number}"
        self._users[ref] += 1
        if ref not in self._leased:
            self._news.set()
        try:
            yield
        finally:
            self._users[ref] -= 1
            self._used_at[ref] = time.monotonic()

    def in_use(self) -> list[str]:
        """What is to be leased now."""
        oldest = time.monotonic() - USED_SECONDS
        self._used_at = {ref: used_at for ref, used_at in self._used_at.items() if used_at > oldest}
        self._users += Counter()  # forgets those that nobody holds
        return sorted(self._users.keys() | self._used_at.keys())

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._renew_seconds):
                    await self._news.wait()
                await asyncio.sleep(GATHER_SECONDS)
            self._news.clear()
            refs = self.in_use()
            for start in range(0, len(refs), VERSIONS_PER_CALL):
                part = refs[start : start + VERSIONS_PER_CALL]
                await self._ask(partial(self._registry.lease, part, holder=self.holder, duration=LEASE))
            self._leased = set(refs)

    async def _ask(self, call: Callable[[], object]) -> None:
        try:
            await self._threads.run(call)
        except RegistryError as error:
            self.failures += 1
            logger.warning("versions in use could not be leased: %s", error)
