"""Runs the registry's HTTP application on a port, without an engine and without torch.

SIGTERM or SIGINT: unready, no new connections; transfers under way finish within the grace, and what waits for news
ends at once. A second signal ends without waiting.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from registry.errors import InvalidValueError
from registry.http.app import create_registry_app
from registry.http.port_server import PortServer
from registry.http.settings import SECRET_MIN_CHARACTERS, HttpSettings
from registry.listening import listen
from registry.loopback import is_loopback_host
from registry.registry import Registry

KEEP_ALIVE_SECONDS = 75
SECRET_FILE_BYTES = 4096


def open_port(host: str, port: int) -> socket.socket:
    """Take the port before anything slow begins. Port 0 is any free one. Raises InvalidValueError."""
    try:
        return listen(host, port)
    except OSError as error:
        why = f"nothing can listen on {host}:{port} ({error.strerror or error}); another server may be running there"
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

    def end() -> None:
        app.begin_drain()
        server.force_exit = server.should_exit
        server.should_exit = True

    server = PortServer(
        app,
        close_seconds=max(1, round(grace_seconds)),
        keep_alive_seconds=KEEP_ALIVE_SECONDS,
        on_signal=end,
        on_started=on_ready,
    )
    await server.serve(sockets=[listener])
