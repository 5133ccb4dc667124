"""Text of others made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters replaced: a name out of an adapter's folder must not steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in text
    )
