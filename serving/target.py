"""What will serve a request: the base alone, one version, or several with weights. Fixed from admission to the end.

It does: name it, in answers and headers. It does not: resolve names (`adapter_loader`), or know what a client wrote
where (`serving.api.selecting`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from registry.principal import OPERATOR, Principal
from registry.version import Version
from serving.served_base import SHORT_DIGITS, ServedBase


class Side(StrEnum):
    """Which version of an alias with a canary serves a request."""

    STABLE = "stable"
    CANARY = "canary"


@dataclass(frozen=True)
class Target:
    """What a name means to a request. `version` is None for the base alone.

    `side` is None where no canary runs on what the client named. `principal` is who may read the version: a registry
    over HTTP is asked for the files on its behalf.
    """

    base: ServedBase
    version: Version | None
    side: Side | None = None
    principal: Principal = OPERATOR

    @property
    def name(self) -> str:
        """How an answer names it: the base, or `acme/text2sql@3`."""
        return self.base.name if self.version is None else f"{self.version.adapter}@{self.version.number}"

    @property
    def digest(self) -> str | None:
        """The version's identity."""
        return None if self.version is None else self.version.digest


@dataclass(frozen=True)
class Part:
    """One version of a selection, by the name that the client wrote, and its weight."""

    model: str
    target: Target
    version: Version
    weight: float = 1.0


@dataclass(frozen=True)
class Selection:
    """What serves a request: no part is the base alone, one of weight 1 a version, anything else an ensemble."""

    base: ServedBase
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """How the answer names it: `acme/a@3`, or `acme/a@3*0.7+acme/b@1*0.3`."""
        return "+".join(_weighted(part.target.name, part.weight, "*") for part in self.parts) or self.base.name

    @property
    def identity(self) -> str | None:
        """By content: a digest, or digests with their weights; None for the base alone."""
        return ", ".join(_weighted(part.version.digest, part.weight, ";weight=") for part in self.parts) or None

    @property
    def fingerprint(self) -> str:
        """Short identity of base and adapters together, for `system_fingerprint`."""
        parts = ["lpx", self.base.short_fingerprint]
        if self.identity is not None:
            is_plain = len(self.parts) == 1 and self.parts[0].weight == 1.0
            digest = self.identity if is_plain else hashlib.sha256(self.identity.encode()).hexdigest()
            parts.append(digest.removeprefix("sha256:")[:SHORT_DIGITS])
        return "-".join(parts)

    @property
    def own_base(self) -> ServedBase:
        """The base as this selection knows it: with the tokens that its adapter added to the vocabulary."""
        serving = self.parts[0].version.serving if len(self.parts) == 1 else None
        tokens = None if serving is None else serving.loraplex.needs.get("vocabulary")
        return self.base if not isinstance(tokens, int) else replace(self.base, vocabulary_tokens=tokens)

    def headers(self) -> dict[str, str]:
        """What served the request, by content."""
        headers = {"x-loraplex-base": self.base.fingerprint}
        if self.identity is not None:
            headers["x-loraplex-adapter"] = self.identity
        if not all(part.version.base_verified for part in self.parts):
            headers["x-loraplex-base-verified"] = "false"
        sides = [part.target.side for part in self.parts]
        if any(side is not None for side in sides):
            headers["x-loraplex-side"] = ", ".join("none" if side is None else side.value for side in sides)
        return headers


def _weighted(name: str, weight: float, sign: str) -> str:
    return name if weight == 1.0 else f"{name}{sign}{weight!r}"
