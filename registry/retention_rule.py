"""How long versions are kept. What applies the rule is in `retention.py`."""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS_LIMIT = 1_000_000
DAYS_LIMIT = 36_500


@dataclass(frozen=True)
class RetentionRule:
    """What is kept of an adapter: the last so many versions, and those of the last so many days."""

    keep_last: int | None = None
    keep_days: int | None = None
