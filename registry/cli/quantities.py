"""Options that hold quantities: durations such as 24h, and sizes such as 10GB."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
NO_LIMIT = "none"
FOREVER = "forever"
_DURATION = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})", re.ASCII)


class Duration(click.ParamType[timedelta]):
    """A number and s, m, h or d."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parse the text; a value that is parsed already stays."""
        if isinstance(value, timedelta):
            return value
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration such as 30m, 24h or 7d.", param, ctx)
        return timedelta(seconds=int(found[1]) * SECONDS[found[2]])


class DurationOrForever(click.ParamType[timedelta | str]):
    """As `Duration`, or `forever`."""

    name = "DURATION|forever"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta | str:
        """Parse the text; `forever` stays."""
        return FOREVER if value == FOREVER else Duration().convert(value, param, ctx)


def span_text(seconds: int | None) -> str:
    """A duration in the largest unit that measures it without a rest; `-` for None."""
    if seconds is None:
        return "-"
    unit = next(unit for unit in reversed(SECONDS) if seconds % SECONDS[unit] == 0)
    return f"{seconds // SECONDS[unit]}{unit}"


class Size(click.ParamType[int | str]):
    """A number of bytes with its unit, or `none`."""

    name = "SIZE|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse the text to bytes; `none` stays."""
        if isinstance(value, int) or value == NO_LIMIT:
            return value  # type: ignore[no-any-return]  # it is one of the two
        found = _SIZE.fullmatch(str(value))
        if found is None or found[2] not in BYTES:
            self.fail(
                f"{value!r} is no size such as 500MB or 10GB (units: {', '.join(filter(None, BYTES))}).", param, ctx
            )
        return int(float(found[1]) * BYTES[found[2]]) if "." in found[1] else int(found[1]) * BYTES[found[2]]


class Count(click.ParamType[int | str]):
    """A number, or `none`."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse the text to a number; `none` stays."""
        if isinstance(value, int) or value == NO_LIMIT:
            return value  # type: ignore[no-any-return]  # it is one of the two
        if not (str(value).isascii() and str(value).isdigit() and len(str(value)) <= 9):
            self.fail(f"{value!r} is neither a number nor '{NO_LIMIT}'.", param, ctx)
        return int(value)


def limit_of(given: int | str | None, present: int | None) -> int | None:
    """The limit that an option sets: None leaves the present one, `none` takes it away."""
    if given is None:
        return present
    return None if isinstance(given, str) else given
