"""Stop strings: the text ends before the first of them, and no part of one is ever shown.

Text that could be the beginning of a stop string is held back until the next text decides.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one sequence. Mutable; owned by one request."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that is now certain to be shown; sets `found` at the first stop string and shows nothing after."""
        if self.found:
            return ""
        if not self._stops:
            return text
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            shown, self._held = self._held[: min(starts)], ""
            return shown
        return self._release(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """The text that was held back and has turned out to be no stop string."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _longest_beginning(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if self._held.endswith(tuple(stop[:length] for stop in self._stops if len(stop) > length)):
                return length
        return 0
