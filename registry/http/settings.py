"""The settings of the registry's HTTP faces: read once by the command, frozen, and passed down."""

from __future__ import annotations

from dataclasses import dataclass, field

SECRET_MIN_CHARACTERS = 24


@dataclass(frozen=True)
class HttpSettings:
    """What the registry's faces are told.

    `is_loopback`: only this machine reaches the port. `operator_secret`: the bearer token of the operator, who may do
    everything; without it nobody beyond this machine is the operator. `public_url`: the address that clients use, where
    it is not the one of their requests; `own_url` leads to this server alone, where several share it. `metrics_open`
    serves /metrics without a token. `upkeep`: this server does its share of the registry's upkeep.
    """

    is_loopback: bool = True
    operator_secret: str | None = field(default=None, repr=False)
    public_url: str | None = None
    own_url: str | None = None
    metrics_open: bool = False
    upkeep: bool = True
    token_cache_seconds: float = 5.0
    body_bytes: int = 4 * 1024 * 1024
    transfer_threads: int = 8
