"""Exercises that copy, pick, order and count: the plain span skills.

Not here: records and JSON (`records`), code (`coding`), dates and times (`clock`).
"""

from random import Random

from basemodel.embedded.exercises.exercise import Exercise, Turn
from basemodel.embedded.exercises.lexicon import (
    NUMBER_WORDS,
    ORDINALS,
    code,
    identifier,
    number,
    one_of,
    phrase,
    sentence,
    value,
    word,
    words,
)

SEPARATORS = {
    "a comma": ", ",
    "a blank": " ",
    "a semicolon": "; ",
    "a bar": " | ",
    "a dash": "-",
    "a slash": "/",
    "a line break": "\n",
    "a plus": " + ",
}


def repeat_text(rng: Random) -> Turn:
    """Say the same text again."""
    texts = [phrase(rng, 2, 10), sentence(rng), " ".join(code(rng) for _ in range(rng.randint(1, 4))), value(rng)]
    text = rng.choice(texts)
    asks = ("Repeat: {}", "Copy this exactly: {}", 'Say "{}"', "Echo\n{}", "Write this again: {}")
    return one_of(rng, *asks, "{}\nRepeat the line above.").format(text), text


def repeat_times(rng: Random) -> Turn:
    """Say one word several times."""
    item, times = value(rng), rng.randint(2, 4)
    count = rng.choice([str(times), NUMBER_WORDS[times]])
    glue, name = rng.choice([(" ", "blanks"), (", ", "commas"), ("\n", "line breaks")])
    return f"Write {item} {count} times, separated by {name}.", glue.join([item] * times)


def pick_nth(rng: Random) -> Turn:
    """Copy the nth item or line."""
    items = [value(rng) for _ in range(rng.randint(3, 7))]
    place = rng.randrange(len(items))
    ordinal = rng.choice([ORDINALS[place], f"{place + 1}.", "last" if place == len(items) - 1 else ORDINALS[place]])
    if rng.random() < 0.5:
        return f"What is the {ordinal} line?\n" + "\n".join(items), items[place]
    return f"Pick the {ordinal} item: " + ", ".join(items), items[place]


def neighbour(rng: Random) -> Turn:
    """The item after or before a given one."""
    items = words(rng, 3, 8)
    place = rng.randrange(len(items) - 1)
    listing = rng.choice([", ", " ", "\n", " > "]).join(items)
    if rng.random() < 0.5:
        ask = one_of(rng, f"Which word follows {items[place]}?\n{listing}", f"{listing}\nNext after {items[place]}?")
        return ask, items[place + 1]
    return f"Which word stands before {items[place + 1]}?\n{listing}", items[place]


def reverse_items(rng: Random) -> Turn:
    """The list backwards."""
    items = words(rng, 2, 6)
    glue = rng.choice([", ", " ", "\n"])
    ask = one_of(rng, "Reverse the order:\n", "Backwards: ", "Write this list in reverse: ")
    return ask + glue.join(items), glue.join(items[::-1])


def sort_items(rng: Random) -> Turn:
    """Sort words or small numbers."""
    if rng.random() < 0.5:
        items = words(rng, 2, 5)
        ask = one_of(rng, "Sort alphabetically: ", "Put in alphabetical order: ")
        return ask + ", ".join(items), ", ".join(sorted(items))
    numbers = rng.sample(range(100), rng.randint(2, 5))
    down = rng.random() < 0.5
    ask = "Sort from high to low: " if down else "Sort the numbers: "
    return ask + ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers, reverse=down)))


def count_items(rng: Random) -> Turn:
    """How many items, in digits."""
    items = words(rng, 1, 9)
    return one_of(rng, "How many words are here? ", "Count the items: ") + ", ".join(items), str(len(items))


def extreme_number(rng: Random) -> Turn:
    """The largest or smallest of some numbers."""
    numbers = rng.sample(range(1000), rng.randint(2, 5))
    if rng.random() < 0.5:
        return f"Which number is the largest? {', '.join(map(str, numbers))}", str(max(numbers))
    return f"Which number is the smallest? {', '.join(map(str, numbers))}", str(min(numbers))


def rejoin(rng: Random) -> Turn:
    """Change the separator of a list."""
    items = words(rng, 2, 7)
    old, new = rng.sample(sorted(SEPARATORS), 2)
    ask = one_of(rng, f"Join these with {new}:\n", f"Use {new} between the items: ")
    return ask + SEPARATORS[old].join(items), SEPARATORS[new].join(items)


def surround(rng: Random) -> Turn:
    """Quote, bracket, number or bullet each item."""
    items = words(rng, 2, 6)
    name, before, after, glue = rng.choice(
        [
            ("double quotes", '"', '"', ", "),
            ("single quotes", "'", "'", ", "),
            ("square brackets", "[", "]", " "),
            ("angle brackets", "<", ">", " "),
            ("stars", "*", "*", " "),
            ("parentheses", "(", ")", ", "),
        ]
    )
    if rng.random() < 0.6:
        return f"Put each item in {name}: {', '.join(items)}", glue.join(f"{before}{item}{after}" for item in items)
    if rng.random() < 0.5:
        return f"As a bullet list: {', '.join(items)}", "\n".join(f"- {item}" for item in items)
    numbered = "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))
    return f"As a numbered list: {', '.join(items)}", numbered


def change_case(rng: Random) -> Turn:
    """Upper, lower, title, snake, kebab and camel case."""
    parts = [word(rng) for _ in range(rng.randint(1, 4))]
    name, answer = rng.choice(
        [
            ("upper case", " ".join(parts).upper()),
            ("title case", " ".join(part.capitalize() for part in parts)),
            ("snake_case", "_".join(parts)),
            ("kebab-case", "-".join(parts)),
            ("camelCase", parts[0] + "".join(part.capitalize() for part in parts[1:])),
            ("CONSTANT_CASE", "_".join(parts).upper()),
            ("PascalCase", "".join(part.capitalize() for part in parts)),
        ]
    )
    return one_of(rng, f"In {name}: ", f"Convert to {name}: ", f"Write in {name}:\n") + " ".join(parts), answer


def unsnake(rng: Random) -> Turn:
    """An identifier as plain words, or back in lower case."""
    name = identifier(rng)
    if rng.random() < 0.5:
        return one_of(rng, "Read this name as words: ", "As plain words: ") + name, name.replace("_", " ")
    return one_of(rng, "Lower case: ", "Convert to lower case: ") + name.upper(), name


def replace_word(rng: Random) -> Turn:
    """Replace or drop one word of a sentence."""
    items = words(rng, 3, 8)
    old, new = rng.choice(items), value(rng)
    if rng.random() < 0.6:
        ask = one_of(rng, f"Replace {old} with {new}: ", f"Write {new} instead of {old}:\n")
        return ask + " ".join(items), " ".join(new if item == old else item for item in items)
    return f"Remove the word {old}: {' '.join(items)}", " ".join(item for item in items if item != old)


def filter_items(rng: Random) -> Turn:
    """Keep the items that hold to a rule."""
    items = words(rng, 3, 7)
    if rng.random() < 0.5:
        letter = rng.choice(items)[0]
        return f"Keep words that start with {letter}: {', '.join(items)}", ", ".join(i for i in items if i[0] == letter)
    numbers = rng.sample(range(100), rng.randint(3, 6))
    bound = rng.choice(numbers)
    kept = [n for n in numbers if n >= bound]
    return f"Keep numbers of at least {bound}: {', '.join(map(str, numbers))}", ", ".join(map(str, kept))


def between_marks(rng: Random) -> Turn:
    """Copy what stands inside marks, or after a mark."""
    inner, left, right = value(rng), phrase(rng, 1, 4), phrase(rng, 1, 4)
    name, before, after = rng.choice(
        [
            ("brackets", "[", "]"),
            ("quotes", '"', '"'),
            ("parentheses", "(", ")"),
            ("stars", "*", "*"),
            ("braces", "{", "}"),
        ]
    )
    ask = one_of(rng, f"What is in {name}?\n", f"Extract the text in {name}: ")
    return f"{ask}{left} {before}{inner}{after} {right}", inner


def split_at(rng: Random) -> Turn:
    """One piece of a delimited text."""
    pieces = [value(rng) for _ in range(rng.randint(2, 5))]
    mark = rng.choice([":", "|", ";", " - ", "=", "\t", "::"])
    place = rng.randrange(len(pieces))
    if rng.random() < 0.4:
        return f'Split at "{mark.strip() or "tab"}", one piece a line: {mark.join(pieces)}', "\n".join(pieces)
    return f"Piece {place + 1} of {mark.join(pieces)}", pieces[place]


def small_sum(rng: Random) -> Turn:
    """Add or subtract small numbers."""
    a, b = rng.randint(0, 60), rng.randint(0, 40)
    if rng.random() < 0.6:
        return one_of(rng, f"{a} + {b} =", f"What is {a} plus {b}?"), str(a + b)
    return one_of(rng, f"{a + b} - {b} =", f"What is {a + b} minus {b}?"), str(a)


def number_word(rng: Random) -> Turn:
    """Number words to digits and back, ordinals too."""
    values = [rng.randint(0, 20) for _ in range(rng.randint(1, 4))]
    spelled, digits = " ".join(NUMBER_WORDS[v] for v in values), " ".join(map(str, values))
    if rng.random() < 0.3:
        place = rng.randrange(10)
        return f"{ORDINALS[place]} as a number", str(place + 1)
    return (f"In digits: {spelled}", digits) if rng.random() < 0.6 else (f"In words: {digits}", spelled)


def find_code(rng: Random) -> Turn:
    """Find the one opaque token or number in running text."""
    if rng.random() < 0.5:
        target = code(rng)
        return f"{sentence(rng)[:-1]} {target} {phrase(rng, 1, 5)}\nWhich part is not a word?", target
    target = number(rng)
    return f"Which number does this name? {phrase(rng, 1, 5)} {target} {phrase(rng, 1, 5)}", target


COPYING: tuple[Exercise, ...] = (
    repeat_text, repeat_times, pick_nth, neighbour, reverse_items, sort_items, count_items, extreme_number, rejoin,
    surround, change_case, unsnake, replace_word, filter_items, between_marks, split_at, small_sum, number_word,
    find_code,
)  # fmt: skip
