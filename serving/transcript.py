"""One sequence as the client will see it: text that is complete and certain, and the tokens that made it.

It does: join detokenizer and stop strings, and let a token's log-probability out only together with its text, so that
a stop string does not leak through them either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.detokenizer import Detokenizer
from serving.messages import TokenLogprob
from serving.stop_strings import StopStrings


@dataclass(frozen=True)
class ShownToken:
    """A token's log-probability and where its text begins (characters from the beginning of the answer)."""

    logprob: TokenLogprob
    offset: int


@dataclass(frozen=True)
class Passage:
    """The next piece of the answer."""

    text: str
    tokens: tuple[ShownToken, ...] = ()


@dataclass
class _WaitingToken:
    logprob: TokenLogprob
    start: int
    end: int | None


class Transcript:
    """The growing answer of one sequence. Mutable; owned by one request."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(stops)
        self._waiting: list[_WaitingToken] = []
        self._decoded_characters = 0
        self._shown_characters = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: the sequence is over."""
        return self._stops.found

    def add(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> Passage:
        """Take the tokens of one step; gives what may be shown now."""
        shown: list[str] = []
        for position, token_id in enumerate(token_ids):
            start = self._decoded_characters
            text = self._detokenizer.add(token_id)
            self._decoded_characters += len(text)
            if logprobs is not None:
                self._waiting.append(_WaitingToken(logprobs[position], start, None))
            if not self._detokenizer.is_waiting:
                self._settle_ends()
            shown.append(self._stops.add(text))
            if self.is_stopped:
                break
        return self._pass("".join(shown), finished=self.is_stopped)

    def finish(self) -> Passage:
        """The sequence is over: what was still held back."""
        text = self._detokenizer.finish()
        self._decoded_characters += len(text)
        self._settle_ends()
        shown = self._stops.add(text) + ("" if self.is_stopped else self._stops.finish())
        return self._pass(shown, finished=True)

    def _settle_ends(self) -> None:
        for token in self._waiting:
            token.end = self._decoded_characters if token.end is None else token.end

    def _pass(self, text: str, *, finished: bool) -> Passage:
        """Show the text, and the tokens whose text is shown by it (at the end: all that begin within it)."""
        self._shown_characters += len(text)
        shown: list[ShownToken] = []
        kept: list[_WaitingToken] = []
        for token in self._waiting:
            if self._is_shown(token, finished=finished):
                shown.append(ShownToken(token.logprob, token.start))
            else:
                kept.append(token)
        self._waiting = [] if finished else kept
        return Passage(text, tuple(shown))

    def _is_shown(self, token: _WaitingToken, *, finished: bool) -> bool:
        if finished:
            return not self.is_stopped or token.start < self._shown_characters
        return token.end is not None and token.end <= self._shown_characters
