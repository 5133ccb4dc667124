"""Mirrors of a registry in process."""

from __future__ import annotations

from datetime import timedelta

from registry.mirror import DEFAULT_REVISION, Mirror, MirrorSync
from registry.mirror_schedule import MirrorSchedule
from registry.mirrors import Mirrors
from registry.names import AdapterName
from registry.principal import Principal


class LocalMirrors:
    """A part of `Registry`: adapters that come from other Hubs."""

    def __init__(self, mirrors: Mirrors, schedule: MirrorSchedule) -> None:
        self._mirrors = mirrors
        self._schedule = schedule

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
        return self._mirrors.add(
            AdapterName.parse(name),
            source,
            revision=revision,
            token=token,
            base_fingerprint=base_fingerprint,
            principal=principal,
        )

    def sync_mirror(self, name: str, *, principal: Principal, token: str | None = None) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one."""
        return self._mirrors.sync(AdapterName.parse(name), token=token, principal=principal)

    def follow_mirror(self, name: str, every: timedelta | None, *, principal: Principal) -> Mirror:
        """Look at the mirror's upstream so often, by itself; None is never."""
        return self._schedule.follow(AdapterName.parse(name), every, principal)

    def list_mirrors(self, principal: Principal) -> list[Mirror]:
        """Where mirrored adapters come from, as far as the caller may read them."""
        return self._mirrors.all(principal)

    def remove_mirror(self, name: str, principal: Principal) -> Mirror:
        """Forget where an adapter came from; its versions stay."""
        return self._mirrors.remove(AdapterName.parse(name), principal)
