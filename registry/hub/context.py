"""What every handler of the Hub face works with: the registry, the settings of this face, and threads of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ParamSpec, TypeVar

from registry.hub.content_facts import ContentFacts
from registry.hub.xet_grant import XetGrants
from registry.hub.xet_session import XetLimits, XetSessions
from registry.registry import Registry
from registry.threads import Threads

P = ParamSpec("P")
R = TypeVar("R")

COMMIT_BYTES_LIMIT = 256 << 20
UPLOAD_BYTES_LIMIT = 8 << 30
UPLOAD_SECONDS = 23 * 3600
"""A little less than the lease that a reservation has."""
PART_BYTES = 128 << 20
"""Larger files go in parts, where the client can: they have to be read again before they are kept."""
THREADS = 16


@dataclass(frozen=True)
class HubSettings:
    """How this face is run.

    `public_url` is the address that clients use, where it is not the one that they name in the Host header. `own_url`
    leads to this server alone, where several share that address: what is uploaded in pieces is gathered on one of them.
    """

    public_url: str | None = None
    own_url: str | None = None
    commit_bytes_limit: int = COMMIT_BYTES_LIMIT
    upload_bytes_limit: int = UPLOAD_BYTES_LIMIT
    upload_seconds: int = UPLOAD_SECONDS
    part_bytes: int = PART_BYTES


@dataclass(frozen=True)
class Hub:
    """The registry as the handlers see it."""

    registry: Registry
    settings: HubSettings
    threads: Threads = field(default_factory=lambda: Threads("hub", THREADS))

    def gathering_url(self, base_url: str) -> str:
        """Where the pieces of one upload are sent, all of them; `base_url` is the address that the client used."""
        return base_url if self.settings.own_url is None else self.settings.own_url.rstrip("/")

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what blocks (the database, files) on a thread of this face."""
        return await self.threads.run(call, *args, **kwargs)

    @cached_property
    def facts(self) -> ContentFacts:
        """What the content of files says."""
        return ContentFacts(self.registry.blobs)

    @cached_property
    def xet_sessions(self) -> XetSessions:
        """The Xet uploads in progress."""
        limits = XetLimits(file_bytes=self.settings.upload_bytes_limit)
        return XetSessions(self.registry.blobs, self.registry.quotas, limits)

    def xet_grants(self) -> XetGrants:
        """Who signs and checks the tokens of Xet uploads. It reads the registry's secret: call it on a thread."""
        return XetGrants(self.registry.signing_secret.value())

    def close(self) -> None:
        """End the threads."""
        self.threads.close()
