"""Moments as the Hub writes them: UTC, with milliseconds and a Z; clients refuse every other form."""

from __future__ import annotations

from datetime import UTC, datetime


def hub_time(moment: datetime) -> str:
    """The moment as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
