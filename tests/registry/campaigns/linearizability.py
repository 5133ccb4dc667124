"""Decides whether a concurrent history of one compare-and-set register is linearizable.

A history is linearizable if each operation can be given one moment between its call and its return so that, at these
moments one after the other, each had the result that it had (Herlihy and Wing, 1990). The search is that of Wing and
Gong (1993) with remembered configurations (Lowe, 2017): take an operation that may be first, apply it, go on with the
rest; a set of operations taken with the value it led to is not searched twice.

An operation that changes nothing is taken as soon as it may be and its result fits: what can follow it later can follow
it now. So the search branches only where two changes fit the same value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Value = int | None


@dataclass(frozen=True)
class Operation:
    """One call on the register, as its caller saw it. Times are of one monotonic clock, in nanoseconds.

    kind `read`: `found` is what it returned. `write`: it set `new`. `cas`: it set `new` if the value was `expected`,
    and `has_set` says whether; where it did not, `found` is the value that it met. `returned` None: nobody knows
    whether it happened (the caller was killed).
    """

    kind: str
    called: int
    returned: int | None
    found: Value = None
    new: Value = None
    expected: Value = None
    has_set: bool = False

    @property
    def is_change(self) -> bool:
        """Whether it set a value, or may have."""
        return self.kind == "write" or (self.kind == "cas" and (self.has_set or self.returned is None))

    def fits(self, value: Value) -> bool:
        """Whether the operation can have had its result on a register of this value."""
        if self.kind == "read":
            return self.returned is None or self.found == value
        if self.kind == "write":
            return True
        if self.is_change:
            return self.expected == value
        return self.found == value and self.expected != value


def is_linearizable(history: Sequence[Operation], initial: Value = None) -> bool:
    """Whether some order of the operations explains every result."""
    operations = sorted(history, key=lambda operation: operation.called)
    needed = sum(1 << index for index, operation in enumerate(operations) if operation.returned is not None)
    searched: set[tuple[int, Value]] = set()
    waiting: list[tuple[int, Value]] = [(0, initial)]
    while waiting:
        taken, value = waiting.pop()
        taken = _take_what_changes_nothing(operations, taken, value)
        if taken & needed == needed:
            return True
        if (taken, value) in searched:
            continue
        searched.add((taken, value))
        waiting += [
            (taken | 1 << index, operations[index].new)
            for index in _may_be_next(operations, taken)
            if operations[index].is_change and operations[index].fits(value)
        ]
    return False


def _take_what_changes_nothing(operations: Sequence[Operation], taken: int, value: Value) -> int:
    while True:
        fitting = [
            index
            for index in _may_be_next(operations, taken)
            if not operations[index].is_change and operations[index].fits(value)
        ]
        if not fitting:
            return taken
        for index in fitting:
            taken |= 1 << index


def _may_be_next(operations: Sequence[Operation], taken: int) -> list[int]:
    """Those left that were called before any of those left had returned."""
    found: list[int] = []
    earliest_return: int | None = None
    index = (~taken & (taken + 1)).bit_length() - 1  # the first that is left
    while index < len(operations):
        operation = operations[index]
        if earliest_return is not None and operation.called > earliest_return:
            break
        if not taken >> index & 1:
            found.append(index)
            if operation.returned is not None and (earliest_return is None or operation.returned < earliest_return):
                earliest_return = operation.returned
        index += 1
    return [index for index in found if earliest_return is None or operations[index].called <= earliest_return]
