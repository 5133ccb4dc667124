"""`loraplex serve`: reads the flags, starts the server, and prints what to do with it.

It does: turn flags into `ServingSettings`, refuse what is unsafe, print the first lines and one clean line per error.
It does not: serve (`serving.server`).
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import click
import uvloop

from registry import Principal, Registry
from registry.cli.home import home_option
from registry.cli.place import REGISTRY_FOLDER, Place, blobs_option, given_blobs, registry_option
from registry.cli.server_options import (
    grace_option,
    log_level_option,
    number_option,
    open_metrics_option,
    port_option,
    start_logging,
)
from registry.errors import RegistryError
from registry.listening import url_of
from registry.opening import open_registry
from registry.version import AdapterSummary
from serving.api.service import Service
from serving.errors import ServingError
from serving.server import open_port, run_server
from serving.settings import LimitSettings, Mode, ServingSettings

MEBIBYTE = 1024 * 1024


@click.command()
@click.option("--base", default="embedded", show_default=True, help="Base model: embedded, a folder, or a Hub id.")
@click.option(
    "--mode",
    type=click.Choice(["nf4", "bf16", "fp32"]),
    default="nf4",
    show_default=True,
    help="How the base's weights are held.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; beyond this machine it needs tokens."
)
@port_option(8000)
@home_option
@registry_option
@blobs_option
@click.option(
    "--token",
    envvar="LORAPLEX_TOKEN",
    default=None,
    hide_input=True,
    help="What the server itself asks a registry over HTTP with; clients are asked for with their own tokens.",
)
@click.option("--device", default="cpu", show_default=True, help="Device of the engine: cpu or cuda.")
@number_option("--threads", 1, 1024, text="CPU threads of the engine.")
@number_option(
    "--adapter-slots", 1, 65536, default=8, text="Adapters on the device at once; further ones are swapped in."
)
@number_option(
    "--adapter-pool-mib",
    1,
    1 << 30,
    text="Device memory for LoRA factors.  [default: a rank-32 adapter of every linear layer in each slot]",
)
@number_option(
    "--adapter-whole-mib",
    0,
    1 << 30,
    text="Device memory for their other tensors: scales, biases, whole weights.  [default: as much + one vocabulary]",
)
@number_option("--max-running", 1, 4096, default=32, text="Sequences computed together.")
@number_option("--max-waiting", 0, 65536, default=256, text="Sequences that may wait, of all tenants together.")
@number_option(
    "--max-waiting-per-tenant",
    0,
    65536,
    text="Sequences of one tenant that may wait.  [default: half of --max-waiting]",
)
@number_option("--context", 2, 1 << 20, text="Longest prompt and answer together, in tokens.  [default: the base's]")
@number_option("--step-tokens", 16, 65536, default=512, text="Most tokens of one forward step.")
@number_option(
    "--mixed-step-tokens",
    16,
    65536,
    text="Most tokens of a step in which somebody decodes.  [default: a quarter of --step-tokens on the CPU]",
)
@number_option(
    "--kv-cache-tokens", 16, text="Tokens that the KV cache holds.  [default: from --max-running and the base]"
)
@number_option("--host-cache-mib", 1, default=1024, text="Host memory for adapters that are not on the device.")
@number_option(
    "--cuda-graph-mib", 0, 1 << 20, default=2048, text="GPU memory for captured decode steps; 0 captures none."
)
@number_option("--disk-cache-mib", 1, default=20480, text="Disk for fetched adapters, under HOME/adapters.")
@grace_option(0, "Seconds that requests have to finish after SIGTERM.")
@number_option(
    "--grammar-idle",
    1,
    86400,
    default=300,
    text="Seconds without work after which a process that compiles grammars ends.",
)
@click.option("--preload", multiple=True, metavar="MODEL", help="Load this adapter at the start; may be repeated.")
@click.option(
    "--keep", multiple=True, metavar="MODEL", help="Keep this adapter in memory, whatever it means; may be repeated."
)
@number_option(
    "--speculative-ngram",
    0,
    16,
    default=0,
    text="Tokens a step that are guessed from a request's own text, unless it says; 0 is none.",
)
@open_metrics_option
@click.option(
    "--upkeep/--no-upkeep",
    default=True,
    show_default=True,
    help="Look after the registry (`loraplex registry upkeep`), where it is not one over HTTP.",
)
@log_level_option("info writes one line for each request.")
def serve(
    base: str,
    mode: Mode,
    host: str,
    port: int,
    home: Path,
    registry: Place | None,
    token: str | None,
    device: str,
    threads: int | None,
    adapter_slots: int,
    adapter_pool_mib: int | None,
    adapter_whole_mib: int | None,
    max_running: int,
    max_waiting: int,
    max_waiting_per_tenant: int | None,
    context: int | None,
    step_tokens: int,
    mixed_step_tokens: int | None,
    kv_cache_tokens: int | None,
    host_cache_mib: int,
    cuda_graph_mib: int,
    disk_cache_mib: int,
    grace: float,
    grammar_idle: int,
    preload: tuple[str, ...],
    keep: tuple[str, ...],
    speculative_ngram: int,
    open_metrics: bool,
    upkeep: bool,
    log_level: str,
) -> None:
    """Serve one base and every adapter of the registry, with an OpenAI-compatible API."""
    place = registry or home / REGISTRY_FOLDER
    settings = ServingSettings(
        home=home,
        registry=str(place),
        registry_token=token,
        registry_blobs=given_blobs(click.get_current_context().meta, place),
        host=host,
        port=port,
        base=base,
        mode=mode,
        device=device,
        threads=threads,
        adapter_slots=adapter_slots,
        adapter_pool_bytes=None if adapter_pool_mib is None else adapter_pool_mib * MEBIBYTE,
        adapter_whole_bytes=None if adapter_whole_mib is None else adapter_whole_mib * MEBIBYTE,
        host_cache_bytes=host_cache_mib * MEBIBYTE,
        cuda_graph_bytes=cuda_graph_mib * MEBIBYTE,
        disk_cache_bytes=disk_cache_mib * MEBIBYTE,
        max_running=max_running,
        step_budget_tokens=step_tokens,
        mixed_step_tokens=mixed_step_tokens,
        kv_cache_tokens=kv_cache_tokens,
        grace_seconds=grace,
        grammar_idle_seconds=grammar_idle,
        preload=preload,
        keep=keep,
        speculative_ngram=speculative_ngram,
        metrics_open=open_metrics,
        upkeep=upkeep,
        limits=LimitSettings(
            max_waiting=max_waiting,
            max_waiting_per_tenant=max_waiting // 2 if max_waiting_per_tenant is None else max_waiting_per_tenant,
            context_tokens=context,
        ),
    )
    start_logging(log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the server asks its registry all the time
    try:
        serve_settings(settings)
    except (ServingError, RegistryError) as error:
        raise click.ClickException(str(error)) from error


def serve_settings(settings: ServingSettings) -> None:
    """Serve until a signal. Raises ServingError or RegistryError with a message for the terminal."""
    place, blobs = settings.registry, settings.registry_blobs
    with open_registry(place, token=settings.registry_token, blobs=blobs) as opened:
        settings.refuse_open_server(has_tokens=opened.has_tokens())
        with open_port(settings.host, settings.port) as listener:
            click.echo(f"Loading the base {settings.base} ({settings.mode}) on {settings.device} ...")
            service = Service(settings, opened)
            uvloop.run(run_server(service, listener, on_ready=lambda _: _announce(service, opened, listener)))
    click.echo("Stopped.")


def _announce(service: Service, opened: Registry, listener: socket.socket) -> None:
    """The first lines: what runs, what it can serve, and how to ask it."""
    base = service.running_base()
    settings = service.settings
    url = url_of(settings.host, listener)
    adapters = [summary for summary in _adapters(opened) if summary.base_fingerprint == base.fingerprint]
    model = adapters[0].adapter if adapters else base.name
    token = '  -H "Authorization: Bearer $LORAPLEX_TOKEN" \\\n' if opened.has_tokens() else ""
    click.echo(
        f"Base      {base.name} {settings.mode}, fingerprint {base.short_fingerprint}, on {base.device}, "
        f"ready after {base.load_seconds:.1f} s"
    )
    click.echo(f"Adapters  {len(adapters)} in the registry for this base, {base.adapter_slots} resident at once")
    click.echo(f"Access    {'bearer tokens' if token else 'this machine only, no tokens'}")
    click.echo(f"URL       {url}")
    click.echo("")
    click.echo(
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n{token}"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )


def _adapters(opened: Registry) -> list[AdapterSummary]:
    """What the registry has; a registry over HTTP shows what this server's own token may read, which may be nothing."""
    try:
        return opened.list_adapters(Principal.operator())
    except RegistryError as error:
        click.echo(f"Warning: {error}", err=True)
        return []
