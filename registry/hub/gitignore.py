"""Which files a .gitignore leaves out, by git's rules: `#`, `!`, anchored and folder patterns, `*`, `?`, `[...]`, `**`.

Patterns come from clients, so they are matched without regular expressions, in time bounded by pattern times path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATTERNS_LIMIT = 1_000
PATTERN_CHARACTERS = 512


@dataclass(frozen=True)
class _Pattern:
    parts: tuple[str, ...]
    is_negated: bool
    is_folder: bool


class GitIgnore:
    """The patterns of one file. Lines beyond the limits are left out."""

    def __init__(self, content: str) -> None:
        lines = [line for line in content.splitlines() if len(line) <= PATTERN_CHARACTERS]
        parsed = (_parse(line) for line in lines[:PATTERNS_LIMIT])
        self._patterns = [pattern for pattern in parsed if pattern is not None]

    def ignores(self, path: str) -> bool:
        """Whether this file is left out, itself or by a folder above it."""
        parts = path.split("/")
        return any(self._ignores(parts[:depth], is_folder=depth < len(parts)) for depth in range(1, len(parts) + 1))

    def _ignores(self, parts: Sequence[str], *, is_folder: bool) -> bool:
        for pattern in reversed(self._patterns):
            if (is_folder or not pattern.is_folder) and _matches(pattern.parts, parts):
                return not pattern.is_negated
        return False


def _parse(line: str) -> _Pattern | None:
    text = line.rstrip() if not line.rstrip().endswith("\\") else line
    if not text or text.startswith("#"):
        return None
    is_negated = text.startswith("!")
    text = text[1:] if is_negated else text
    is_folder = text.endswith("/")
    text = text.rstrip("/")
    is_anchored = "/" in text
    parts = tuple(part for part in text.split("/") if part)
    if not parts:
        return None
    return _Pattern(parts if is_anchored else ("**", *parts), is_negated, is_folder)


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of the path are all matched; `**` stands for any number of parts."""
    reachable = {0}
    for expected in pattern:
        if expected == "**":
            reachable = set(range(min(reachable, default=len(parts) + 1), len(parts) + 1))
        else:
            reachable = {at + 1 for at in reachable if at < len(parts) and _part_matches(expected, parts[at])}
    return len(parts) in reachable


def _part_matches(pattern: str, text: str) -> bool:
    """One part against `*`, `?`, `[...]` and literal characters: steps back to the last star only."""
    at, position = 0, 0
    star, star_position = -1, 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, star_position = at, position
            at += 1
            continue
        end = _one_matches(pattern, at, text[position]) if at < len(pattern) else None
        if end is not None:
            at, position = end, position + 1
        elif star >= 0:
            star_position += 1
            at, position = star + 1, star_position
        else:
            return False
    return not pattern[at:].strip("*")


def _one_matches(pattern: str, at: int, character: str) -> int | None:
    """Where the pattern goes on after matching this character; None where it does not match."""
    first = pattern[at]
    if first == "?":
        return at + 1
    if first == "\\" and at + 1 < len(pattern):
        return at + 2 if pattern[at + 1] == character else None
    close = pattern.find("]", at + 2) if first == "[" else -1
    if close < 0:
        return at + 1 if first == character else None
    members = pattern[at + 1 : close]
    is_negated = members[0] in "!^"
    return close + 1 if _is_member(members[1:] if is_negated else members, character) != is_negated else None


def _is_member(members: str, character: str) -> bool:
    at = 0
    while at < len(members):
        if at + 2 < len(members) and members[at + 1] == "-":
            if members[at] <= character <= members[at + 2]:
                return True
            at += 3
        else:
            if members[at] == character:
                return True
            at += 1
    return False
