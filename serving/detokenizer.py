"""Token ids to text, piece by piece, without ever cutting a character in two.

A character may span several tokens, and a token's text may depend on the one before it. So the tail of the ids is
decoded twice, without and with the new token, and the difference is the new text, unless it ends in U+FFFD: then a
character is incomplete and the piece waits. (Method: prefix and read offsets, as text-generation-inference does it.)
"""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_WAIT_TOKENS = 48
"""Bytes that are no text are given up, as U+FFFD, after so many tokens: no character is that long."""


class Detokenizer:
    """The text of one sequence. Mutable; owned by one request."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        self._prefix = 0
        self._read = 0

    @property
    def is_waiting(self) -> bool:
        """Whether tokens wait for the rest of their character."""
        return self._read < len(self._token_ids)

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._token_ids.append(token_id)
        known, text = self._texts()
        waited = len(self._token_ids) - self._read
        if len(text) <= len(known) or (text.endswith(REPLACEMENT) and waited < LONGEST_WAIT_TOKENS):
            if text == known:
                self._read = len(self._token_ids)  # a token without text, such as a special one
            return ""
        self._advance()
        return text[len(known) :]

    def finish(self) -> str:
        """What still waits, incomplete characters as U+FFFD."""
        known, text = self._texts()
        self._advance()
        return text[len(known) :]

    def _texts(self) -> tuple[str, str]:
        return (
            self._decode(self._token_ids[self._prefix : self._read]),
            self._decode(self._token_ids[self._prefix :]),
        )

    def _advance(self) -> None:
        self._prefix = self._read
        self._read = len(self._token_ids)
