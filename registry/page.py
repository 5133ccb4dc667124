"""A page of a listing, and what asks for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from registry.errors import InvalidValueError

Item = TypeVar("Item")

PAGE_LIMIT = 1_000
PAGE_DEFAULT = 100


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of the items, in order. `next_cursor` asks for those after them; None: these were the last.

    A cursor names the last item that was shown, so that what is added or deleted meanwhile neither repeats an item
    nor hides one.
    """

    items: tuple[Item, ...]
    next_cursor: str | None


def check_limit(limit: int) -> int:
    """The number of items asked for. Raises InvalidValueError."""
    if not 1 <= limit <= PAGE_LIMIT:
        raise InvalidValueError("limit", f"a page has 1 to {PAGE_LIMIT} items")
    return limit
