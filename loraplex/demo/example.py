"""One line of a demo data set, and the side of the split that it stands on.

Splits are made by hashing what an example is about (a schema, a schedule, a value), so that the two sides share no such
thing.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum


class Side(Enum):
    """The side of the split: one thing in five is held out."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Example:
    """A prompt and the one answer that counts as right."""

    messages: tuple[dict[str, str], ...]
    """The prompt: messages with "role" and "content", the last one from the user."""
    completion: str
    """The exact content of the assistant's answer."""
    instance: str
    """What the example is about; its hash decides the side."""

    @property
    def prompt(self) -> str:
        """The user's text."""
        return self.messages[-1]["content"]


def side_of(instance: str) -> Side:
    """The side that a schema, a schedule or a value belongs to, for good."""
    bucket = int.from_bytes(hashlib.sha256(instance.encode()).digest()[:4], "big") % 5
    return Side.HELD_OUT if bucket == 0 else Side.TRAIN


def ask(text: str, completion: str, instance: str) -> Example:
    """An example with one user message."""
    return Example(({"role": "user", "content": text},), completion, instance)
