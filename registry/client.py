"""A registry on another machine, with the methods of `registry.registry.Registry`.

    with registry.open("https://registry.example", token="lpx_...") as reg:
        version = reg.resolve("acme/text2sql@prod", principal=registry.Principal.operator())

Whose rights a call has: `Principal.operator()` (and methods without a principal) mean the token that this client was
opened with, whatever it may do there; a principal that `authenticate` returned carries its own token and is asked with
that one, so a server that serves many tenants never lends them its own rights. Other principals are refused: there
would be nothing to ask with.

Only what needs the registry's own disk is not here (`LOCAL_ONLY`; tests/registry/test_same_interface.py compares).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from registry.remote.adapters import RemoteAdapters
from registry.remote.aliases import RemoteAliases
from registry.remote.events import RemoteEvents
from registry.remote.insight import RemoteInsight
from registry.remote.safekeeping import RemoteSafekeeping
from registry.remote.tenants import RemoteTenants
from registry.remote.transfer import Progress
from registry.remote.transport import Transport
from registry.remote.trust import RemoteTrust
from registry.remote.upkeep import RemoteUpkeep

LOCAL_ONLY = frozenset(
    {
        "backup",
        "caretaker",
        "check_integrity",
        "collect_garbage",
        "courier",
        "folder",
        "fsck",
        "newest_event",
        "open_file",
        "publish_staged",
        "receiving",
        "remembered",
        "restore",
        "upkeep",
    }
)
"""What `Registry` has and this class does not."""


class RemoteRegistry(
    RemoteAdapters,
    RemoteAliases,
    RemoteTenants,
    RemoteEvents,
    RemoteUpkeep,
    RemoteTrust,
    RemoteSafekeeping,
    RemoteInsight,
):
    """A registry over HTTP. Threads may share it. Every method raises errors of `registry.errors` only.

    `progress` is told of the files that pass in uploads and downloads. One that is not patient asks once, and waits for
    a few seconds.
    """

    def __init__(
        self, url: str, *, token: str | None = None, progress: Progress | None = None, is_patient: bool = True
    ) -> None:
        self._http = Transport(url, token, is_patient=is_patient)
        self._progress = progress

    @property
    def url(self) -> str:
        """Where the registry is."""
        return self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Using the registry afterwards opens them again."""
        self._http.close()
