"""What an exercise is, and how exercises become conversations.

Does not hold exercises: they stand in the sibling files, one file for each family.
"""

from collections.abc import Callable, Sequence
from random import Random

from basemodel.embedded.exercises.lexicon import one_of, sentence

Turn = tuple[str, str]
"""(prompt, answer)."""
Exercise = Callable[[Random], Turn]
"""Draws one turn from the generator."""
Conversation = list[dict[str, str]]
"""Messages with "role" and "content", as the chat template takes them."""

SYSTEM_SHARE = 0.2
SECOND_TURN_SHARE = 0.12


def converse(rng: Random, exercises: Sequence[Exercise]) -> Conversation:
    """One conversation of one to three turns, now and then with a system message."""
    messages: Conversation = []
    draw = rng.random()
    if draw < SYSTEM_SHARE:
        messages.append({"role": "system", "content": _system_text(rng)})
    while True:
        prompt, answer = rng.choice(exercises)(rng)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": answer})
        if rng.random() > SECOND_TURN_SHARE or len(messages) > 5:
            return messages


def _system_text(rng: Random) -> str:
    if rng.random() < 0.3:
        return sentence(rng)
    return one_of(
        rng,
        "You are a helpful assistant.",
        "Answer exactly and briefly.",
        "You are a careful assistant. Answer with the result only.",
        "Follow the instruction. Give no explanation.",
        "You rewrite text and extract facts.",
        "Answer in the format that is asked for.",
    )
