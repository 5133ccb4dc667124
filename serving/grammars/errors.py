"""The one error of grammars."""

from __future__ import annotations


class GrammarRefusedError(Exception):
    """A schema, pattern or grammar that cannot be followed. `reason` is written for the client that sent it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
