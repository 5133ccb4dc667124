"""What the registry's upkeep does and how often: one policy for all servers of a registry, kept in its database."""

from __future__ import annotations

from dataclasses import dataclass

from registry.errors import InvalidValueError

HOUR_SECONDS, DAY_SECONDS = 3600, 86_400
YEAR_SECONDS = 366 * DAY_SECONDS
_RANGES = {
    "collect_every_seconds": (60, 30 * DAY_SECONDS),
    "grace_seconds": (0, 365 * DAY_SECONDS),
    "events_seconds": (DAY_SECONDS, 100 * YEAR_SECONDS),
    "audit_seconds": (DAY_SECONDS, 100 * YEAR_SECONDS),
}
"""In seconds."""
_MAY_BE_NONE = {"events_seconds", "audit_seconds"}


@dataclass(frozen=True)
class UpkeepPolicy:
    """How often garbage is collected and with which grace, and how long events and audit rows are kept; None: for ever.

    Garbage is what `loraplex gc` takes away, with the retention rules.
    """

    collect_every_seconds: int = 6 * HOUR_SECONDS
    grace_seconds: int = DAY_SECONDS
    events_seconds: int | None = 90 * DAY_SECONDS
    audit_seconds: int | None = None


def check_field(name: str, value: int | None) -> None:
    """Raises InvalidValueError where the field cannot have this value."""
    lowest, highest = _RANGES[name]
    if value is None:
        if name not in _MAY_BE_NONE:
            raise InvalidValueError(name, "it is a number of seconds")
    elif not lowest <= value <= highest:
        raise InvalidValueError(name, f"it is {value:,}, and not between {lowest:,} and {highest:,} seconds")
