"""`loraplex registry serve`: the registry alone on a port: REST, the Hub protocol, health and metrics. No torch."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import click

from registry.cli.options import HomePath, RegistryCommand
from registry.http.settings import HttpSettings
from registry.loopback import is_loopback_host
from registry.opening import open_registry
from registry.registry import Registry
from registry.server import open_port, read_operator_secret, refuse_open_server, run_registry

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
EXAMPLE_HOST = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (names them, does not bind them)


@click.command(cls=RegistryCommand)
@click.option(
    "--data",
    required=True,
    metavar="DIR|URL",
    help="The registry: a folder (made where there is none) or postgresql://.",
)
@click.option("--blobs", default=None, metavar="DIR|URL", help="Where the files are, if not in the folder: s3://...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; beyond this machine it needs tokens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Port; 0 is any free one.")
@click.option("--public-url", default=None, metavar="URL", help="The address that clients use, behind a proxy.")
@click.option(
    "--own-url",
    default=None,
    metavar="URL",
    help="The address of this server alone, where several share one: uploads in pieces are sent there.",
)
@click.option(
    "--operator-token-file",
    type=HomePath(dir_okay=False),
    default=None,
    help="File with a secret of your own: the operator's bearer token, who may do everything over HTTP.",
)
@click.option("--open-metrics", is_flag=True, help="Serve /metrics without a token.")
@click.option("--upkeep/--no-upkeep", default=True, show_default=True, help="Do `loraplex registry upkeep` by itself.")
@click.option(
    "--grace",
    type=click.FloatRange(1, 3600),
    default=30,
    show_default=True,
    help="Seconds that transfers have to finish after SIGTERM.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What is written to stderr.",
)
def serve(
    data: str,
    *,
    blobs: str | None,
    host: str,
    port: int,
    public_url: str | None,
    own_url: str | None,
    operator_token_file: Path | None,
    open_metrics: bool,
    upkeep: bool,
    grace: float,
    log_level: str,
) -> None:
    """Serve a registry: REST (/registry/v1), the Hugging Face Hub protocol, /livez, /readyz and /metrics."""
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every opening
    settings = HttpSettings(
        is_loopback=is_loopback_host(host),
        operator_secret=None if operator_token_file is None else read_operator_secret(operator_token_file),
        public_url=public_url,
        own_url=own_url,
        metrics_open=open_metrics,
        upkeep=upkeep,
    )
    place = data if "://" in data else Path(data).expanduser()
    with open_registry(place, blobs=blobs) as registry:
        refuse_open_server(registry, host, settings)
        with open_port(host, port) as listener:
            run_registry(
                registry,
                listener,
                settings,
                grace_seconds=grace,
                on_ready=lambda: _announce(registry, listener, host, settings),
            )


def _announce(registry: Registry, listener: socket.socket, host: str, settings: HttpSettings) -> None:
    has_tokens = settings.operator_secret is not None or registry.has_tokens()
    name = EXAMPLE_HOST.get(host, f"[{host}]" if ":" in host else host)
    access = "bearer tokens" if has_tokens else "this machine only, no tokens"
    click.echo(f"Registry on http://{name}:{listener.getsockname()[1]} ({access})")
