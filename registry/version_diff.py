"""How two versions differ, as an answer. What compares them is in `diff.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """Something that differs; None on a side where it is not there."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ModuleDiff:
    """One module. Norms are Frobenius norms of the served update; None where the module or its figure is not there.

    `cosine` compares the updates, `cosine_a` and `cosine_b` the factors where their shapes agree. Two adapters may have
    one update and other factors.
    """

    module: str
    rank_before: int | None
    rank_after: int | None
    norm_before: float | None
    norm_after: float | None
    distance: float | None
    cosine: float | None
    cosine_a: float | None
    cosine_b: float | None


@dataclass(frozen=True)
class VersionDiff:
    """From `before` to `after`. `config` compares the configs, or a mixture's documents, its experts among them.

    `modules` are None where the caller did not ask for weights, and where one of the two is a mixture, which has none.
    """

    before: str
    after: str
    same_base: bool
    files: tuple[Change, ...]
    config: tuple[Change, ...]
    metrics: tuple[Change, ...]
    modules: tuple[ModuleDiff, ...] | None
