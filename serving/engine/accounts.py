"""What each of several parties was served: a virtual token counter.

It does: count, let a party that comes in start where the least served of those inside stands, and remember the debt of
one that leaves, so that neither idleness nor leaving and coming back wins anything.
It does not: know what a party is (a tenant, or an adapter of one) or choose (`fairness`).
Source: "Fairness in Serving Large Language Models" (OSDI'24).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

# Debts of those who left are forgotten when the others have caught up, and beyond this many the smallest are.
MOST_DEBTS = 1024


class Accounts:
    """Served tokens by party. Only `FairOrder` changes it. When nobody is inside, everything is forgotten."""

    def __init__(self) -> None:
        self._served: dict[Hashable, int] = {}
        self._inside: Counter[Hashable] = Counter()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is inside."""
        return not self._inside

    def enter(self, party: Hashable) -> None:
        """One more request of this party is inside."""
        if party not in self._inside:
            floor = min((self._served[other] for other in self._inside), default=0)
            self._served[party] = max(floor, self._served.get(party, floor))
        self._inside[party] += 1

    def leave(self, party: Hashable) -> None:
        """A request of this party is done."""
        self._inside[party] -= 1
        if self._inside[party]:
            return
        del self._inside[party]
        if not self._inside:
            self._served.clear()
        elif len(self._served) > len(self._inside) + MOST_DEBTS:
            self._forget_debts()

    def charge(self, party: Hashable, tokens: int) -> None:
        """A party that is inside was served these tokens."""
        assert party in self._inside
        self._served[party] += tokens

    def served(self, party: Hashable) -> int:
        """What counts for a party that is inside: compare it with another's, it means nothing alone."""
        return self._served[party]

    def check_integrity(self, inside: Counter[Hashable]) -> None:
        """Those inside are those of `inside` (party -> requests), and what is remembered of others is bounded."""
        assert inside == self._inside
        assert set(self._inside) <= set(self._served)
        assert len(self._served) <= len(self._inside) + MOST_DEBTS
        assert self._inside or not self._served

    def _forget_debts(self) -> None:
        """Keep the larger half of the debts that still count."""
        floor = min(self._served[party] for party in self._inside)
        debts = sorted(
            ((served, party) for party, served in self._served.items() if party not in self._inside and served > floor),
            key=lambda debt: -debt[0],
        )
        kept = dict.fromkeys(party for _, party in debts[: MOST_DEBTS // 2])
        self._served = {party: self._served[party] for party in [*self._inside, *kept]}
