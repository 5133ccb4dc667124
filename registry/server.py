"""Runs the registry's HTTP application on a port, without an engine and without torch.

SIGTERM or SIGINT: unready, no new connections; transfers under way finish within the grace, and what waits for news
ends at once. A second signal ends without waiting.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import uvloop

from registry.errors import InvalidValueError
from registry.http.app import RegistryApp, create_registry_app
from registry.http.large_reads import LargeReads
from registry.http.settings import SECRET_MIN_CHARACTERS, HttpSettings
from registry.listening import BACKLOG, ending_signals, listen
from registry.loopback import is_loopback_host
from registry.registry import Registry

KEEP_ALIVE_SECONDS = 75
SECRET_FILE_BYTES = 4096


def open_port(host: str, port: int) -> socket.socket:
    """Take the port before anything slow begins. Port 0 is any free one. Raises InvalidValueError."""
    try:
        return listen(host, port)
    except OSError as error:
        why = f"nothing can listen on {host}:{port} ({error.strerror or error}); is another server running there?"
        raise InvalidValueError("port", why) from error


def refuse_open_server(registry: Registry, host: str, settings: HttpSettings) -> None:
    """Refuse to listen beyond this machine while nobody needs a token. Raises InvalidValueError."""
    if is_loopback_host(host) or settings.operator_secret is not None or registry.has_tokens():
        return
    raise InvalidValueError(
        "host",
        f"listening on {host} without tokens would let everybody who reaches it change every adapter; make a token "
        "with `loraplex token create`, name a file with --operator-token-file, or listen on 127.0.0.1",
    )


def read_operator_secret(path: Path) -> str:
    """The operator's bearer token out of a file of one line. Raises InvalidValueError."""
    try:
        with path.open("rb") as stream:
            secret = stream.read(SECRET_FILE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValueError("operator-token-file", f"{path} cannot be read") from error
    if len(secret) < SECRET_MIN_CHARACTERS or not secret.isascii() or not secret.isprintable() or " " in secret:
        why = f"{path} does not hold one line of at least {SECRET_MIN_CHARACTERS} printable characters without spaces"
        raise InvalidValueError("operator-token-file", why)
    return secret


def run_registry(
    registry: Registry,
    listener: socket.socket,
    settings: HttpSettings,
    *,
    grace_seconds: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve until a signal; `on_ready` runs once, when requests are answered."""
    uvloop.run(_serve(registry, listener, settings, grace_seconds, on_ready))


async def _serve(
    registry: Registry,
    listener: socket.socket,
    settings: HttpSettings,
    grace_seconds: float,
    on_ready: Callable[[], None],
) -> None:
    app = create_registry_app(registry, settings)
    config = uvicorn.Config(
        app,
        http=LargeReads,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    await _Server(config, app, on_ready).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, which tells the application that it is ending and us that it has begun."""

    def __init__(self, config: uvicorn.Config, app: RegistryApp, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals on the event loop while the server runs."""
        with ending_signals(self._on_signal):
            yield

    def _on_signal(self) -> None:
        self._app.begin_drain()
        self.force_exit = self.should_exit
        self.should_exit = True
