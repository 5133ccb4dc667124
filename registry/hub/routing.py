"""Finds the handler of a request by the raw segments of its path.

Revisions and file names carry `%2F`, so a path is split at its slashes before anything is decoded. A pattern's segment
is a word, `{name}` (one segment), `{name}.git` (one segment that ends so) or `{name...}` (all that is left, at least
one segment). Captured text is decoded strictly: broken escapes, text that is not UTF-8 and control characters match
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote_to_bytes

SEGMENTS_LIMIT = 64
PATH_BYTES_LIMIT = 8_192

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CAPTURE = re.compile(r"\{([a-z_]+)(\.\.\.)?\}(.*)")

Handler = Callable[..., Awaitable[Any]]


class Access(Enum):
    """What a request must show before its handler runs."""

    PRINCIPAL = "principal"
    """A bearer token, or the local operator."""
    BROWSER = "browser"
    """The same; a browser may send the token as the password of HTTP Basic. For reading only."""
    SIGNED = "signed"
    """An address that carries its own signature; the handler checks it."""
    OPEN = "open"
    """Nothing: clients send no token here. The handler reads and changes nothing of the registry."""


@dataclass(frozen=True)
class Route:
    """One line of the table."""

    method: str
    pattern: str
    handler: Handler
    access: Access = Access.PRINCIPAL


@dataclass(frozen=True)
class Match:
    """A route, and what its pattern captured."""

    route: Route
    values: dict[str, str]


class RouteTable:
    """All routes. The first one that fits wins, so the words come before the captures."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._compiled = [(route, _compile(route.pattern)) for route in self.routes]

    def find(self, method: str, raw_path: bytes) -> Match | frozenset[str]:
        """The match, or the methods that this path would allow (none: there is no such path)."""
        segments = raw_path.split(b"/")[1:]
        if len(raw_path) > PATH_BYTES_LIMIT or len(segments) > SEGMENTS_LIMIT:
            return frozenset()
        allowed = set()
        for route, pattern in self._compiled:
            values = _values(pattern, segments)
            if values is None:
                continue
            if route.method == method:
                return Match(route, values)
            allowed.add(route.method)
        return frozenset(allowed)


@dataclass(frozen=True)
class _Segment:
    literal: bytes | None
    name: str = ""
    takes_rest: bool = False
    suffix: bytes = b""


def _compile(pattern: str) -> tuple[_Segment, ...]:
    assert pattern.startswith("/"), pattern
    return tuple(_compile_segment(segment) for segment in pattern[1:].split("/"))


def _compile_segment(segment: str) -> _Segment:
    capture = _CAPTURE.fullmatch(segment)
    if capture is None:
        return _Segment(segment.encode("ascii"))
    name, rest, suffix = capture.groups()
    return _Segment(None, name, rest is not None, suffix.encode("ascii"))


def _values(pattern: tuple[_Segment, ...], segments: list[bytes]) -> dict[str, str] | None:
    takes_rest = pattern[-1].takes_rest
    if len(segments) < len(pattern) or (len(segments) > len(pattern) and not takes_rest):
        return None
    for expected, found in zip(pattern, segments, strict=False):
        if expected.literal is not None and expected.literal != found:
            return None
    values = {}
    for position, expected in enumerate(pattern):
        if expected.literal is not None:
            continue
        raw = b"/".join(segments[position:]) if expected.takes_rest else segments[position]
        if not raw.endswith(expected.suffix):
            return None
        text = decode_segment(raw[: len(raw) - len(expected.suffix)])
        if not text:
            return None
        values[expected.name] = text
    return values


def decode_segment(raw: bytes) -> str | None:
    """Undo percent-encoding; None where it is broken, not UTF-8, or holds a control character."""
    if _BROKEN_ESCAPE.search(raw):
        return None
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None
