"""What every handler of the Hub face works with: the registry, the settings of this face, and threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import ParamSpec, TypeVar

from registry.hub.xet_grant import XetGrants
from registry.hub.xet_session import XetLimits, XetSessions
from registry.registry import Registry
from registry.threads import Threads

P = ParamSpec("P")
R = TypeVar("R")

COMMIT_BYTES_LIMIT = 256 << 20
UPLOAD_BYTES_LIMIT = 8 << 30
UPLOAD_SECONDS = 23 * 3600
"""A little less than the lease that a reservation has."""
PART_BYTES = 5_000_000
"""Larger files go in parts, where the client can."""
THREADS = 16
CHUNKS_AT_ONCE = 4
"""Of a megabyte each: every visit to a thread costs the event loop."""


@dataclass(frozen=True)
class HubSettings:
    """How this face is run.

    `public_url` is the address that clients use, where it is not the one that they name in the Host header.
    """

    public_url: str | None = None
    commit_bytes_limit: int = COMMIT_BYTES_LIMIT
    upload_bytes_limit: int = UPLOAD_BYTES_LIMIT
    upload_seconds: int = UPLOAD_SECONDS
    part_bytes: int = PART_BYTES


@dataclass(frozen=True)
class Hub:
    """The registry as the handlers see it."""

    registry: Registry
    settings: HubSettings
    threads: Threads = field(default_factory=lambda: Threads("hub", THREADS))

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what blocks (the database, files) on a thread of this face."""
        return await self.threads.run(call, *args, **kwargs)

    @cached_property
    def xet_sessions(self) -> XetSessions:
        """The Xet uploads in progress."""
        limits = XetLimits(file_bytes=self.settings.upload_bytes_limit)
        return XetSessions(self.registry.blobs, self.registry.quotas, limits)

    def xet_grants(self) -> XetGrants:
        """Who signs and checks the tokens of Xet uploads. It reads the registry's secret: call it on a thread."""
        return XetGrants(self.registry.signing_secret.value())

    async def write_all(self, pieces: AsyncIterator[bytes], write: Callable[[bytes], object]) -> None:
        """Write each piece on a thread, while the next one arrives."""
        writing: asyncio.Future[object] | None = None
        try:
            async for piece in pieces:
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(self.run(write, piece))
            if writing is not None:
                await writing
        finally:
            if writing is not None:  # nobody may close what a thread still writes to
                await asyncio.gather(writing, return_exceptions=True)

    async def read_all(self, chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Read some chunks at once on a thread, while the ones before them are on their way."""
        reading = asyncio.ensure_future(self.run(_take, chunks))
        try:
            while piece := await reading:
                reading = asyncio.ensure_future(self.run(_take, chunks))
                yield piece
        finally:
            await asyncio.gather(reading, return_exceptions=True)

    def close(self) -> None:
        """End the threads."""
        self.threads.close()


def _take(chunks: Iterator[bytes]) -> bytes:
    return b"".join(islice(chunks, CHUNKS_AT_ONCE))
