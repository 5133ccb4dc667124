"""What a caller expects of an alias that is moved: the compare of its compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Expectation(Enum):
    """What a caller expects of an alias who expects nothing in particular."""

    ANY = "any"


ANY = Expectation.ANY
"""Move the alias wherever it points now."""


@dataclass(frozen=True)
class AtSequence:
    """The alias must not have moved since the move of this number: the strictest expectation, over HTTP its ETag."""

    sequence: int


Expected = int | None | AtSequence | Expectation
"""The version number that the alias must point at; None where it must not exist yet."""
