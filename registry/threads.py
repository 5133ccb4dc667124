"""A few named threads for calls that block: the registry, the disk, the tokenizer. Each kind has its own, so that
slow calls of one kind do not hold up another.

Bytes on their way between the network and the disk pass in batches: what arrives while a batch is written becomes the
next one, and the next one is read while a batch is on its way. Each visit to a thread costs the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

BATCH_BYTES = 2 << 20
"""Two batches of an upload are in memory at most: one that is written, one that arrives."""


class Threads:
    """`count` threads called `loraplex-<name>`; `close` waits for none of them."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix=f"loraplex-{name}")

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking call on one of the threads and give back what it returns or raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    async def write_all(self, pieces: AsyncIterable[bytes], write: Callable[[bytes], object]) -> None:
        """Give each piece to `write`, in order, on one thread at a time, while the next ones arrive.

        When this returns or raises, no thread writes any more.
        """
        writing: asyncio.Future[None] | None = None
        batch: list[bytes] = []
        size = 0
        try:
            async for piece in pieces:
                batch.append(piece)
                size += len(piece)
                if size >= BATCH_BYTES:
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(self.run(_write, write, batch))
                    batch, size = [], 0
            if writing is not None:
                await writing
            if batch:
                writing = asyncio.ensure_future(self.run(_write, write, batch))
                await writing
        finally:
            if writing is not None:  # nobody may close what a thread still writes to
                await asyncio.gather(writing, return_exceptions=True)

    async def read_all(self, chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Take each chunk on a thread, while the one before it is on its way."""
        reading = asyncio.ensure_future(self.run(next, chunks, b""))
        try:
            while chunk := await reading:
                reading = asyncio.ensure_future(self.run(next, chunks, b""))
                yield chunk
        finally:
            await asyncio.gather(reading, return_exceptions=True)

    def close(self) -> None:
        """Take no further calls; those that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _write(write: Callable[[bytes], object], batch: Sequence[bytes]) -> None:
    for piece in batch:
        write(piece)
