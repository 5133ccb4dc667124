"""`loraplex registry serve`: the registry alone on a port: REST, the Hub protocol, health and metrics. No torch."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry.cli.options import HomePath, RegistryCommand
from registry.cli.place import Place, PlaceType, blobs_option, given_blobs
from registry.cli.server_options import (
    grace_option,
    log_level_option,
    open_metrics_option,
    port_option,
    start_logging,
)
from registry.errors import InvalidValueError
from registry.http.settings import HttpSettings
from registry.listening import url_of
from registry.loopback import is_loopback_host
from registry.opening import open_registry
from registry.scheme import HTTP_SCHEMES, scheme_of

if TYPE_CHECKING:
    from registry.registry import Registry


@click.command(cls=RegistryCommand)
@click.option(
    "--data",
    type=PlaceType(file_okay=False),
    required=True,
    metavar="DIR|URL",
    help="The registry: a folder (made where there is none) or postgresql://.",
)
@blobs_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; beyond this machine it needs tokens.")
@port_option(8001)
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
@open_metrics_option
@click.option("--upkeep/--no-upkeep", default=True, show_default=True, help="Do `loraplex registry upkeep` by itself.")
@grace_option(1, "Seconds that transfers have to finish after SIGTERM.")
@log_level_option("What is written to stderr.")
def serve(
    data: Place,
    *,
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
    from registry.server import open_port, read_operator_secret, refuse_open_server, run_registry  # web, databases

    start_logging(log_level)
    if scheme_of(data) in HTTP_SCHEMES:
        raise InvalidValueError("data", f"{data} is a server already; name the folder or the database that it serves")
    settings = HttpSettings(
        is_loopback=is_loopback_host(host),
        operator_secret=None if operator_token_file is None else read_operator_secret(operator_token_file),
        public_url=public_url,
        own_url=own_url,
        metrics_open=open_metrics,
        upkeep=upkeep,
    )
    blobs = given_blobs(click.get_current_context().meta, data)
    with open_registry(data, blobs=blobs) as registry:
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
    access = "bearer tokens" if has_tokens else "this machine only, no tokens"
    click.echo(f"Registry on {url_of(host, listener)} ({access})")
