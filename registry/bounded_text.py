"""Checks the free text that callers attach to things: labels, messages, evidence."""

from __future__ import annotations

from registry.errors import InvalidValueError


def check_text(field: str, text: str, *, limit_characters: int) -> None:
    """Raises InvalidValueError where the text is too long, or cannot be stored as UTF-8 by every database."""
    if len(text) > limit_characters:
        raise InvalidValueError(field, f"it has more than {limit_characters:,} characters")
    if not is_unicode(text):
        raise InvalidValueError(field, "it is not Unicode text")
    if "\0" in text:
        raise InvalidValueError(field, "it holds a zero character, which PostgreSQL cannot keep")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
