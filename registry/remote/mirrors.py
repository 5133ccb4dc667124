"""Mirrors of a registry over HTTP."""

from __future__ import annotations

from datetime import timedelta

from registry.mirror import DEFAULT_REVISION, Mirror, MirrorSync
from registry.principal import Principal
from registry.remote.paths import adapter_path
from registry.remote.transport import Transport


class RemoteMirrors:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def add_mirror(
        self,
        name: str,
        source: str,
        *,
        principal: Principal,
        revision: str = DEFAULT_REVISION,
        token: str | None = None,
        base_fingerprint: str | None = None,
    ) -> MirrorSync:
        """Pull an adapter in from another Hub, and remember where it came from; `token` is for that Hub."""
        body = {"source": source, "revision": revision, "token": token, "base_fingerprint": base_fingerprint}
        return self._http.ask("PUT", _mirror_path(name), MirrorSync, principal=principal, body=body)

    def sync_mirror(self, name: str, *, principal: Principal, token: str | None = None) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one."""
        path = f"{_mirror_path(name)}/sync"
        return self._http.ask("POST", path, MirrorSync, principal=principal, body={"token": token})

    def follow_mirror(self, name: str, every: timedelta | None, *, principal: Principal) -> Mirror:
        """Look at the mirror's upstream so often; None is never by itself."""
        body = {"every_seconds": None if every is None else round(every.total_seconds())}
        return self._http.ask("PUT", f"{_mirror_path(name)}/schedule", Mirror, principal=principal, body=body)

    def list_mirrors(self, principal: Principal) -> list[Mirror]:
        """Where mirrored adapters come from, as far as the caller may read them."""
        return self._http.get("/mirrors", list[Mirror], principal=principal)

    def remove_mirror(self, name: str, principal: Principal) -> Mirror:
        """Forget where an adapter came from; its versions stay."""
        return self._http.ask("DELETE", _mirror_path(name), Mirror, principal=principal)


def _mirror_path(name: str) -> str:
    return adapter_path(name) + "/mirror"
