"""The registry's real application on a real port, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from registry import Registry
from registry.http.app import RegistryApp, create_registry_app
from registry.http.large_reads import LargeReads
from registry.http.settings import HttpSettings
from registry.server import open_port

START_SECONDS = 60.0


@contextmanager
def serving(reg: Registry, **settings: Any) -> Iterator[str]:
    """Serve an open registry, and give its address."""
    listener = open_port("127.0.0.1", 0)
    made: list[tuple[RegistryApp, uvicorn.Server]] = []

    async def run() -> None:
        app = create_registry_app(reg, HttpSettings(**settings))
        config = uvicorn.Config(
            app,
            http=LargeReads,
            lifespan="on",
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        made.append((app, server))
        await server._serve(sockets=[listener])  # without its handling of signals, which only the main thread can have

    thread = threading.Thread(target=lambda: uvloop.run(run()), name="registry-server")
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (made and made[0][1].started):
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if made:
            made[0][1].should_exit = True
        thread.join(30)
        listener.close()
