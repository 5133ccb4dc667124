"""The checker itself: histories that are known to be good or bad, and all small ones against the definition."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registry.campaigns.linearizability import Operation, Value, is_linearizable


def read(called: int, returned: int, found: Value) -> Operation:
    return Operation("read", called, returned, found=found)


def write(called: int, returned: int | None, new: Value) -> Operation:
    return Operation("write", called, returned, new=new)


def cas(called: int, returned: int | None, expected: Value, new: Value, found: Value | str = "set") -> Operation:
    if found == "set":
        return Operation("cas", called, returned, expected=expected, new=new, has_set=returned is not None)
    assert not isinstance(found, str)
    return Operation("cas", called, returned, expected=expected, new=new, found=found)


GOOD = {
    "nothing": [],
    "one after the other": [cas(0, 1, None, 1), read(2, 3, 1), cas(4, 5, 1, 2), read(6, 7, 2)],
    "a read beside a change sees either": [cas(0, 9, None, 1), read(1, 2, None), read(3, 4, 1)],
    "the later caller goes first": [cas(0, 9, 1, 2), cas(1, 8, None, 1), read(10, 11, 2)],
    "a refusal names what it met": [cas(0, 1, None, 1), cas(2, 3, None, 5, found=1), read(4, 5, 1)],
    "who was killed has changed it": [cas(0, None, None, 1), read(5, 6, 1)],
    "who was killed has changed nothing": [cas(0, None, None, 1), read(5, 6, None)],
    "who was killed changes it late": [cas(0, None, None, 1), read(5, 6, None), read(7, 8, 1)],
}
BAD = {
    "a stale read": [cas(0, 1, None, 1), read(2, 3, None)],
    "a lost update": [cas(0, 1, None, 1), cas(2, 9, 1, 2), cas(3, 8, 1, 3)],
    "a read goes back": [cas(0, 9, None, 1), read(1, 2, 1), read(3, 4, None)],
    "a value from nowhere": [cas(0, 1, None, 1), read(2, 3, 7)],
    "a refusal without a reason": [cas(0, 1, None, 1), cas(2, 3, 1, 5, found=1)],
    "a refusal that met what was not there": [cas(0, 1, None, 1), cas(2, 3, None, 5, found=4)],
    "a change before its call": [read(0, 1, 1), cas(2, 3, None, 1)],
    "killed once, changed twice": [cas(0, None, None, 1), read(2, 3, 1), write(4, 5, 9), read(6, 7, 1)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_good_histories(history: list[Operation]) -> None:
    assert is_linearizable(history)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_bad_histories(history: list[Operation]) -> None:
    assert not is_linearizable(history)


def by_definition(history: list[Operation]) -> bool:
    """Try every order that keeps who returned before whom was called; those nobody knows of may be left out."""
    unknown = [operation for operation in history if operation.returned is None]
    for left_out in range(1 << len(unknown)):
        dropped = [operation for index, operation in enumerate(unknown) if left_out >> index & 1]
        chosen = [operation for operation in history if operation not in dropped]
        if any(explains(order) for order in permutations(chosen)):
            return True
    return False


def explains(order: tuple[Operation, ...]) -> bool:
    value: Value = None
    for index, operation in enumerate(order):
        if any(later.returned is not None and later.returned < operation.called for later in order[index + 1 :]):
            return False
        if not operation.fits(value):
            return False
        if operation.is_change:
            value = operation.new
    return True


VALUES = st.sampled_from([None, 1, 2])


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Any operations with any results: most of these histories are bad."""
    count = draw(st.integers(1, 5))
    times = draw(st.permutations(range(2 * count)))
    history = []
    for index in range(count):
        called, returned = sorted(times[2 * index : 2 * index + 2])
        kind = draw(st.sampled_from(["read", "write", "cas", "refused", "unknown"]))
        if kind == "read":
            history.append(read(called, returned, draw(VALUES)))
        elif kind == "write":
            history.append(write(called, returned, draw(VALUES)))
        elif kind == "cas":
            history.append(cas(called, returned, draw(VALUES), draw(VALUES)))
        elif kind == "refused":
            history.append(cas(called, returned, draw(VALUES), draw(VALUES), found=draw(VALUES)))
        else:
            history.append(cas(called, None, draw(VALUES), draw(VALUES)))
    return history


@given(small_histories())
@settings(max_examples=120, deadline=None)
def test_the_search_agrees_with_the_definition(history: list[Operation]) -> None:
    assert is_linearizable(history) == by_definition(history)


@st.composite
def true_histories(draw: st.DrawFn) -> list[Operation]:
    """A register is really run, at moments inside of intervals that overlap."""
    count = draw(st.integers(1, 60))
    value: Value = None
    history = []
    for index in range(count):
        moment = 10 * index + 5
        called = moment - draw(st.integers(0, 80))
        returned = moment + draw(st.integers(0, 80))
        new, expected = draw(VALUES), draw(VALUES)
        kind = draw(st.sampled_from(["read", "write", "cas"]))
        if kind == "read":
            history.append(read(called, returned, value))
        elif kind == "write":
            history.append(write(called, returned, new))
            value = new
        elif expected == value:
            history.append(cas(called, returned, expected, new))
            value = new
        else:
            history.append(cas(called, returned, expected, new, found=value))
    return history


@given(true_histories())
@settings(max_examples=40, deadline=None)
def test_what_a_register_really_did_is_linearizable(history: list[Operation]) -> None:
    assert is_linearizable(history)
