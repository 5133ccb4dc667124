"""What the names of requests meant when the registry was last asked, and whether that may be used without asking again.

A registry in this process answers in microseconds and exactly: it is asked each time. One over HTTP is asked again

    at once             after an event of the name's adapter, which the follower has heard (`registry_follower.py`)
    after 15 seconds    while the follower hears of every event that concerns the name
    after half a second while it does not

and while it cannot be asked at all, the last answer still holds.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from registry.principal import Principal
from registry.scope import Scope
from registry.version import Split, Visibility

NAMES_LIMIT = 4096
FOLLOWED_SECONDS = 15.0
UNFOLLOWED_SECONDS = 0.5
SILENCE_SECONDS = 5.0
IN_USE_SECONDS = 600.0

_Key = tuple[str | None, Scope | None, str]


@dataclass
class _Entry:
    split: Split
    principal: Principal
    asked_at: float
    used_at: float
    is_stale: bool


@dataclass(frozen=True)
class NameInUse:
    """A name that somebody has asked for lately, and who."""

    model: str
    principal: Principal


class ResolvedNames:
    """Answers of the registry, bounded. Used on one event loop, by one `AdapterLoader` and one `RegistryFollower`."""

    def __init__(self, *, asks_always: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._asks_always = asks_always
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._follower: Principal | None = None
        self._heard_at = float("-inf")
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often the registry was heard to change: what was asked before the last time may be old."""
        return self._changes

    def current(self, principal: Principal, model: str) -> Split | None:
        """The answer, if it may be used without asking."""
        entry = self._entries.get(_key(principal, model))
        if entry is None:
            return None
        entry.used_at = self._clock()
        if self._asks_always or entry.is_stale:
            return None
        seconds = FOLLOWED_SECONDS if self._is_followed(entry) else UNFOLLOWED_SECONDS
        return entry.split if entry.used_at - entry.asked_at < seconds else None

    def last(self, principal: Principal, model: str) -> Split | None:
        """The last answer, however old."""
        entry = self._entries.get(_key(principal, model))
        return None if entry is None else entry.split

    def remember(self, principal: Principal, model: str, split: Split, *, asked_at: float, changes: int) -> None:
        """Keep an answer. `asked_at` and `changes` are from before it was asked for."""
        key = _key(principal, model)
        self._entries[key] = _Entry(split, principal, asked_at, self._clock(), is_stale=changes != self._changes)
        self._entries.move_to_end(key)
        if len(self._entries) > NAMES_LIMIT:
            self._entries.popitem(last=False)

    def forget(self, principal: Principal, model: str) -> None:
        """The registry does not know the name any more."""
        self._entries.pop(_key(principal, model), None)

    def changed(self, adapter: str) -> list[NameInUse]:
        """Something happened to the adapter: ask again for its names. Returns those that are in use."""
        self._changes += 1
        found = [(key, entry) for key, entry in self._entries.items() if _adapter_of(entry) == adapter]
        for _, entry in found:
            entry.is_stale = True
        oldest = self._clock() - IN_USE_SECONDS
        return [NameInUse(key[2], entry.principal) for key, entry in found if entry.used_at >= oldest]

    def followed_by(self, principal: Principal) -> None:
        """The events that this principal may read are heard from now on; what was missed before is not known."""
        self._follower = principal
        self._changes += 1
        for entry in self._entries.values():
            entry.is_stale = True
        self.heard()

    def heard(self) -> None:
        """The feed has answered."""
        self._heard_at = self._clock()

    def lost(self) -> None:
        """The feed does not answer."""
        self._follower = None

    def _is_followed(self, entry: _Entry) -> bool:
        if self._follower is None or self._clock() - self._heard_at > SILENCE_SECONDS:
            return False
        is_public = entry.split.stable.visibility is Visibility.PUBLIC
        own = self._follower.scope is None and entry.split.stable.tenant == self._follower.tenant
        return self._follower.is_operator or own or is_public


def _key(principal: Principal, model: str) -> _Key:
    """An answer is good for everybody who may read the same."""
    return principal.tenant, principal.scope, model


def _adapter_of(entry: _Entry) -> str:
    return entry.split.stable.adapter
