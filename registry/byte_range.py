"""The Range header of a download (RFC 9110, 14): one range of bytes, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)


@dataclass(frozen=True)
class ByteRange:
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int


class UnsatisfiableRangeError(ValueError):
    """A range that begins behind the last byte."""


def parse_range(text: str | None, *, size: int) -> ByteRange | None:
    """The range that the header asks for; None is everything, also where the header is of a kind that is not served.

    Raises UnsatisfiableRangeError.
    """
    found = None if text is None else _RANGE.fullmatch(text.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise UnsatisfiableRangeError
        return ByteRange(max(0, size - int(last)), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRangeError
    return ByteRange(start, min(int(last) + 1, size) if last else size)
