"""Reads calls of functions out of a growing answer.

It does: split the text into what is said and what is called, as it arrives, a call's arguments piece by piece.
It does not: check them: a grammar has made the model write them (`tool_syntax`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from serving.tool_syntax import ToolSyntax


@dataclass(frozen=True)
class Said:
    """Text that is not part of a call."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call, the `index`-th of the answer."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsPiece:
    """The next piece of the JSON that are a call's arguments."""

    index: int
    text: str


Piece = Said | CallBegun | ArgumentsPiece


class _Place(Enum):
    TEXT = "outside of calls"
    HEAD = "before a call's arguments"
    ARGUMENTS = "in a call's arguments"
    TAIL = "behind a call's arguments"


class ToolCallReader:
    """One answer. Mutable; owned by one choice of a request."""

    def __init__(self, syntax: ToolSyntax) -> None:
        self._opening = syntax.opening
        self._head = re.compile(r'\s*\{"name": "([^"\\]*)", "' + syntax.arguments_key + '": ')
        self._place = _Place.TEXT
        self._held = ""
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._calls = 0
        self._complete_calls = 0
        self._is_whole_answer = syntax.is_whole_answer
        self._has_begun = False

    @property
    def has_only_complete_calls(self) -> bool:
        """Whether there are calls, and none of them is cut off."""
        return self._calls > 0 and self._calls == self._complete_calls

    def add(self, text: str) -> list[Piece]:
        """What the next text of the answer brings."""
        if self._is_whole_answer and not self._has_begun and text:
            self._has_begun = True
            self._place = _Place.HEAD if text.startswith("{") else _Place.TEXT
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The answer is over: text that was held back."""
        held, self._held = self._held, ""
        return [Said(held)] if held and self._place is _Place.TEXT else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Read on in the held text; False where it needs more."""
        match self._place:
            case _Place.TEXT:
                return self._read_text(pieces)
            case _Place.HEAD:
                if found := self._head.match(self._held):
                    self._held = self._held[found.end() :]
                    self._place = _Place.ARGUMENTS
                    pieces.append(CallBegun(self._calls, found[1]))
                    self._calls += 1
                    return True
                return False
            case _Place.ARGUMENTS:
                return self._read_arguments(pieces)
            case _Place.TAIL:
                _, opening, rest = self._held.partition(self._opening) if self._opening else (self._held, "", "")
                if opening:
                    self._held, self._place = rest, _Place.HEAD
                return bool(opening)

    def _read_text(self, pieces: list[Piece]) -> bool:
        text, opening, rest = self._held.partition(self._opening) if self._opening else (self._held, "", "")
        if opening:
            self._held, self._place = rest, _Place.HEAD
        else:
            kept = self._longest_beginning(text)
            text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            pieces.append(Said(text))
        return bool(opening)

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of the text with which a call may begin."""
        lengths = range(min(len(text), len(self._opening) - 1), 0, -1)
        return next((length for length in lengths if text.endswith(self._opening[:length])), 0)

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        """A JSON object, up to the brace that closes it."""
        for position, character in enumerate(self._held):
            self._follow(character)
            if self._depth == 0 and character == "}" and not self._in_string:
                pieces.append(ArgumentsPiece(self._calls - 1, self._held[: position + 1]))
                self._held = self._held[position + 1 :]
                self._place = _Place.TAIL
                self._complete_calls += 1
                return True
        if self._held:
            pieces.append(ArgumentsPiece(self._calls - 1, self._held))
            self._held = ""
        return False

    def _follow(self, character: str) -> None:
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
