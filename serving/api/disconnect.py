"""Notices that a client has gone, which Litestar does for streams only: plain answers would be computed to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from litestar.types import Receive

from serving.errors import ClientGoneError

R = TypeVar("R")


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, R]) -> R:
    """The work's result; when the client leaves first, the work is cancelled and ClientGoneError raised.

    To be called when the request's body has been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(client_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        await cancel_and_wait(working, leaving)


async def client_left(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and wait until it has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
