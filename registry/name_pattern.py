r"""Matches module names as PEFT does for rank_pattern and alpha_pattern, without running a regular expression.

PEFT runs `re.match(rf"(.*\.)?({key})$", module)` and takes the first key that matches. Keys here are plain names, or
whole ones after a '^', taken literally: a look-up per dotted ending of the module gives PEFT's answer in time linear in
the module's depth, whatever the keys are. (In PEFT a '.' of a key matches any character; no real module names differ in
only that.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")
NAME_CHARACTERS_LIMIT = 512

_NAME = re.compile(r"\^?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


def is_module_name(text: str) -> bool:
    """Whether this is a dotted name, or the end of one, and no other pattern."""
    return len(text) <= NAME_CHARACTERS_LIMIT and _NAME.fullmatch(text) is not None


def endings(module: str) -> Iterator[str]:
    """The module's full name, then what is left after each dot."""
    yield module
    for position, character in enumerate(module):
        if character == ".":
            yield module[position + 1 :]


class PatternTable(Generic[Value]):
    """Values by module name ending, in PEFT's order. Immutable once built."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._entries = {key: (order, value) for order, (key, value) in enumerate(values.items())}

    def get(self, module: str, default: Value) -> Value:
        """The value of the first key that matches this module, else the default."""
        names = (f"^{module}", *endings(module))
        found = [self._entries[name] for name in names if name in self._entries]
        return min(found, key=lambda entry: entry[0])[1] if found else default
