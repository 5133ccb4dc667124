"""An event of the feed, and a page of them, as readers get them. What writes and reads them is in `events.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

PAGE_EVENTS = 100


class EventKind(StrEnum):
    """What can have happened. Readers must leave out kinds that they do not know: a later release has more."""

    VERSION_PUBLISHED = "version.published"
    VERSION_DELETED = "version.deleted"
    ALIAS_PROMOTED = "alias.promoted"
    ALIAS_ROLLED_BACK = "alias.rolled_back"
    ALIAS_DELETED = "alias.deleted"
    ALIAS_REFUSED = "alias.refused"
    ALIAS_POLICY = "alias.policy"
    CANARY_STARTED = "canary.started"
    CANARY_CHANGED = "canary.changed"
    CANARY_ENDED = "canary.ended"
    VERSION_ATTESTED = "version.attested"
    ADAPTER_CREATED = "adapter.created"
    COMMIT_CREATED = "commit.created"
    ADAPTER_VISIBILITY = "adapter.visibility"
    ADAPTER_DELETED = "adapter.deleted"
    ADAPTER_MOVED = "adapter.moved"
    BASE_REGISTERED = "base.registered"
    WEBHOOK_TEST = "webhook.test"


@dataclass(frozen=True)
class Event:
    """One thing that happened. `tenant` and `adapter` are empty for what belongs to nobody, such as a base."""

    id: int
    at: datetime
    kind: str
    tenant: str
    adapter: str
    is_public: bool
    document: dict[str, Any]


@dataclass(frozen=True)
class EventPage:
    """Events after a cursor, oldest first; `cursor` is where to go on, also where the page is empty.

    `is_complete` is False where events after the cursor are no longer kept: some of them were not seen.
    """

    events: tuple[Event, ...]
    cursor: int
    is_complete: bool = True
