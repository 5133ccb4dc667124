"""The settings of the server: read once by the command, frozen, and passed down in parts.

It does: hold every limit of the API process, and derive the engine's own settings.
It does not: read flags, files or the environment (`serving.cli`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from registry.loopback import is_loopback_host
from serving.errors import SettingsError
from serving.messages import EngineSettings

Mode = Literal["nf4", "bf16", "fp32"]
ENGINE_COMMAND = (sys.executable, "-m", "serving.engine")


@dataclass(frozen=True)
class SupervisionSettings:
    """How the engine process is watched.

    After `silence_seconds` without a message the server is not ready, after `stall_seconds` the engine is killed
    and started again. `restart_limit` failed starts in a row end the server.
    """

    command: tuple[str, ...] = ENGINE_COMMAND
    start_seconds: float = 1800.0
    silence_seconds: float = 5.0
    stall_seconds: float = 120.0
    stop_seconds: float = 5.0
    restart_limit: int = 5
    first_backoff_seconds: float = 0.25
    longest_backoff_seconds: float = 15.0
    steady_seconds: float = 60.0
    queued_messages: int = 1024


@dataclass(frozen=True)
class LimitSettings:
    """What one client, one tenant and all of them together may ask for."""

    max_waiting: int = 256
    max_waiting_per_tenant: int = 128
    body_bytes: int = 4 * 1024 * 1024
    context_tokens: int | None = None
    send_seconds: float = 60.0


@dataclass(frozen=True)
class ServingSettings:
    """Everything that `loraplex serve` is told.

    `registry` is a folder or a URL; `registry_token` is what the server itself asks one over HTTP with;
    `registry_blobs` is where the files of one in PostgreSQL are. `metrics_open` serves /metrics without a token.
    `speculative_ngram` is for requests that do not say.
    `keep` are models whose adapters stay in memory. `upkeep`: this server does its share of its registry's upkeep.
    The engine's fields have the meanings of `serving.messages.EngineSettings`.
    """

    home: Path
    registry: str
    registry_token: str | None = field(default=None, repr=False)
    registry_blobs: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    base: str = "embedded"
    mode: Mode = "nf4"
    device: str = "cpu"
    threads: int | None = None
    adapter_slots: int = 8
    adapter_pool_bytes: int | None = None
    adapter_whole_bytes: int | None = None
    host_cache_bytes: int = 1024 * 1024 * 1024
    cuda_graph_bytes: int = 2 * 1024 * 1024 * 1024
    disk_cache_bytes: int = 20 * 1024 * 1024 * 1024
    max_running: int = 32
    step_budget_tokens: int = 512
    mixed_step_tokens: int | None = None
    speculative_ngram: int = 0
    kv_cache_tokens: int | None = None
    grace_seconds: float = 30.0
    grammar_idle_seconds: float = 300.0
    token_cache_seconds: float = 5.0
    preload: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    metrics_open: bool = False
    upkeep: bool = True
    limits: LimitSettings = field(default_factory=LimitSettings)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)

    @property
    def adapters_folder(self) -> Path:
        """Where verified adapter folders lie."""
        return self.home / "adapters"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback_host(self.host)

    def engine_settings(self, socket: str) -> EngineSettings:
        """The settings for one start of the engine, which connects to `socket`."""
        return EngineSettings(
            socket=socket,
            base=self.base,
            mode=self.mode,
            device=self.device,
            bases_folder=str(self.home / "bases"),
            max_running=self.max_running,
            step_budget_tokens=self.step_budget_tokens,
            mixed_step_tokens=self.mixed_step_tokens,
            kv_cache_tokens=self.kv_cache_tokens,
            adapter_slots=self.adapter_slots,
            adapter_pool_bytes=self.adapter_pool_bytes,
            adapter_whole_bytes=self.adapter_whole_bytes,
            host_cache_bytes=self.host_cache_bytes,
            threads=self.threads,
            cuda_graph_bytes=self.cuda_graph_bytes,
        )

    def refuse_open_server(self, *, has_tokens: bool) -> None:
        """Refuse to listen beyond this machine while nobody needs a token (CVE-2026-86793 of another server)."""
        if not self.is_loopback and not has_tokens:
            raise SettingsError(
                f"Refusing to listen on {self.host} without tokens: everybody who reaches it could use every adapter. "
                "Make a token with `loraplex token create --tenant TENANT`, or listen on 127.0.0.1."
            )
