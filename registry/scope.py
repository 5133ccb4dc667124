"""A token's scope: the adapters of its tenant that it is for, by name or pattern; `*` stands for any characters."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from registry.errors import InvalidValueError

PATTERNS_LIMIT = 100
STARS_LIMIT = 2
ESCAPE = "\\"
"""What takes a LIKE pattern's characters their meaning."""
_PATTERN = re.compile(r"[a-z0-9*][a-z0-9._*-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Scope:
    """Names and patterns, at least one; without the tenant, which is the token's."""

    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, patterns: Sequence[str]) -> Scope:
        """Check what a caller wrote. Raises InvalidValueError."""
        if not 1 <= len(patterns) <= PATTERNS_LIMIT:
            raise InvalidValueError("scope", f"it has 1 to {PATTERNS_LIMIT} names or patterns")
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern) or pattern.count("*") > STARS_LIMIT:
                raise InvalidValueError(
                    "scope",
                    f"{pattern[:100]!r} is no name of an adapter without its tenant, and no pattern such as sql-* (at "
                    f"most {STARS_LIMIT} stars)",
                )
        return cls(tuple(sorted(set(patterns))))

    @classmethod
    def from_json(cls, document: str | None) -> Scope | None:
        """The scope as the database keeps it."""
        return None if document is None else cls(tuple(json.loads(document)))

    def to_json(self) -> str:
        """The scope as the database keeps it."""
        return json.dumps(self.patterns)

    def covers(self, name: str) -> bool:
        """Whether the adapter of this name (without its tenant) is in the scope."""
        return any(_matches(pattern, name) for pattern in self.patterns)

    def like_patterns(self) -> tuple[str, ...]:
        """The patterns for SQL's LIKE with `ESCAPE`; names are lower case, so that LIKE's case does not matter."""
        return tuple(pattern.replace("_", ESCAPE + "_").replace("*", "%") for pattern in self.patterns)

    def __str__(self) -> str:
        return ", ".join(self.patterns)


def _matches(pattern: str, name: str) -> bool:
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(".*".join(parts), name, re.ASCII) is not None
