"""Guesses how a text goes on from what it said before: prompt lookup, a draft model for nothing.

It does: find where a request's last tokens stood before and propose what followed them there, and adapt how much it
proposes to how much was right. It does not: verify (`engine`), or decide what a step has room for (`scheduler`).
Source: prompt lookup decoding (A. Saxena, 2023), as in transformers and vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

# How many last tokens must have stood together before; the longest match counts.
MATCHED_TOKENS = (3, 2)
# Of a longer text only the end is looked up, and in one call so much of it is taken in: a step never waits for that.
MOST_INDEXED_TOKENS = 8192
INDEXED_AT_ONCE = 512
# Steps without a draft after one of which nothing was right; each further one doubles them.
LONGEST_REST_STEPS = 32


class Drafts:
    """What one request said, and how well guessing went. Only the scheduler and the engine loop change it.

    At most `most_tokens` are proposed in a step.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._length = min(4, most_tokens)
        self._rest_steps = 0
        self._next_rest_steps = 1
        self._followed_at: dict[tuple[int, ...], int] = {}  # some tokens -> where what followed them last begins
        self._indexed = 0
        self._begin = 0

    def propose(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens that may follow `tokens`; none where nothing matches or guessing went badly."""
        self._index(tokens)
        if self._rest_steps:
            self._rest_steps -= 1
            return ()
        wanted = min(limit, self._length)
        if wanted <= 0:
            return ()
        for count in MATCHED_TOKENS:
            position = self._followed_at.get(tuple(tokens[-count:]))
            if position is not None:
                draft: list[int] = []
                for index in range(position, position + wanted):  # a text that repeats itself runs on into its draft
                    draft.append(tokens[index] if index < len(tokens) else draft[index - len(tokens)])
                return tuple(draft)
        return ()

    def judge(self, drafted: int, accepted: int) -> None:
        """So many of the drafted tokens were right: propose more of them next time, or fewer, or none for a while."""
        if accepted == 0:
            self._length = max(1, self._length // 2)
            self._rest_steps = self._next_rest_steps
            self._next_rest_steps = min(2 * self._next_rest_steps, LONGEST_REST_STEPS)
            return
        self._next_rest_steps = 1
        self._length = min(self._most_tokens, 2 * drafted if accepted == drafted else accepted + 1)

    def _index(self, tokens: Sequence[int]) -> None:
        """Take in what is new, but for the last token: nothing has followed it yet."""
        if len(tokens) - self._begin > 2 * MOST_INDEXED_TOKENS or not self._indexed:
            self._followed_at.clear()
            self._begin = max(0, len(tokens) - MOST_INDEXED_TOKENS)
            self._indexed = self._begin + min(MATCHED_TOKENS)
        end = min(len(tokens), self._indexed + INDEXED_AT_ONCE)
        for position in range(self._indexed, end):
            for count in MATCHED_TOKENS:
                if position - count >= self._begin:
                    self._followed_at[tuple(tokens[position - count : position])] = position
        self._indexed = max(self._indexed, end)
