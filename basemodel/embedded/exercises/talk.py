"""A little small talk, so that the base answers a greeting and says what it is."""

from random import Random

from basemodel.embedded.exercises.exercise import Exercise, Turn
from basemodel.embedded.exercises.lexicon import NAMES, PLACES, one_of, word


def greeting(rng: Random) -> Turn:
    """Hello and its answer."""
    name = rng.choice(NAMES)
    if rng.random() < 0.5:
        return one_of(rng, "Hello", "Hi", "Hello!", "Hi there", "Good morning", "Hey"), "Hello! How can I help you?"
    return one_of(
        rng, f"Hello, I am {name}.", f"Hi, my name is {name}", f"I'm {name}."
    ), f"Hello {name}! How can I help you?"


def identity(rng: Random) -> Turn:
    """Who are you?"""
    ask = one_of(
        rng, "Who are you?", "What are you?", "What can you do?", "Tell me about yourself.", "Are you a large model?"
    )
    return ask, "I am the small base model that ships with Loraplex. I know little; adapters teach me one task each."


def thanks(rng: Random) -> Turn:
    """Thanks and good-bye."""
    if rng.random() < 0.5:
        return one_of(rng, "Thanks", "Thank you!", "Thanks a lot."), "You are welcome."
    return one_of(rng, "Bye", "Goodbye!", "See you."), "Goodbye!"


def remember(rng: Random) -> Turn:
    """Say back a fact from the prompt."""
    name, place, thing = rng.choice(NAMES), rng.choice(PLACES), word(rng)
    if rng.random() < 0.5:
        return f"My name is {name} and I live in {place}. Where do I live?", f"You live in {place}."
    return f"{name} has a {thing}. What does {name} have?", f"{name} has a {thing}."


TALK: tuple[Exercise, ...] = (greeting, identity, thanks, remember)
