"""Exercises on fields and values: look-ups, tables, listings, templates, JSON and its relatives.

No log lines: turning those into JSON is a demo task.
"""

import json
from random import Random

from basemodel.embedded.exercises.exercise import Exercise, Turn
from basemodel.embedded.exercises.lexicon import (
    NAMES,
    ORDINALS,
    PLACES,
    code,
    identifier,
    identifiers,
    number,
    one_of,
    phrase,
    value,
    word,
    words,
)

Scalar = str | int | float | bool | None


def scalar(rng: Random) -> Scalar:
    """A JSON value: text, whole number, decimal, truth value or null."""
    draw = rng.random()
    if draw < 0.6:
        return natural(value(rng))
    if draw < 0.85:
        return rng.randint(0, 10 ** rng.randint(1, 5))
    if draw < 0.93:
        return round(rng.random() * 100, rng.randint(1, 2))
    return rng.choice([True, False, None])


def natural(text: str) -> Scalar:
    """A number if the text is one in plain notation (no leading zero), else the text itself."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return parsed if isinstance(parsed, int | float) and json.dumps(parsed) == text else text


def record(rng: Random, least: int, most: int) -> dict[str, Scalar]:
    """Distinct keys with values."""
    return {key: scalar(rng) for key in identifiers(rng, least, most)}


def plain(item: Scalar) -> str:
    """A value without quotes."""
    return item if isinstance(item, str) else json.dumps(item)


def lines_of(rng: Random, fields: dict[str, Scalar]) -> str:
    """A record in one of several plain notations."""
    mark, glue = rng.choice(
        [(": ", "\n"), ("=", " "), (" = ", "\n"), (": ", "; "), ("=", "&"), (" -> ", "\n"), ("=", ", "), (":", " ")]
    )
    return glue.join(f"{key}{mark}{plain(item)}" for key, item in fields.items())


def look_up(rng: Random) -> Turn:
    """The value of one key."""
    fields = record(rng, 2, 6)
    key = rng.choice(list(fields))
    text = rng.choice([lines_of(rng, fields), json.dumps(fields)])
    spoken = rng.choice([key, key.replace("_", " ")])
    return one_of(
        rng, f"What is {spoken}?\n{text}", f"{text}\n{spoken}?", f"Give the value of {spoken}: {text}"
    ), plain(fields[key])


def which_key(rng: Random) -> Turn:
    """The key of one value."""
    fields = {key: value(rng) for key in identifiers(rng, 2, 5)}
    key = rng.choice(list(fields))
    return f"Which key holds {fields[key]}?\n{lines_of(rng, dict(fields))}", key


def to_json(rng: Random) -> Turn:
    """A whole record as JSON."""
    fields = record(rng, 1, 5)
    return one_of(rng, "As JSON: ", "Convert to JSON:\n", "Write a JSON object for\n") + lines_of(
        rng, fields
    ), json.dumps(fields)


def some_to_json(rng: Random) -> Turn:
    """Chosen keys in a chosen order as JSON."""
    fields = record(rng, 3, 6)
    chosen = rng.sample(list(fields), rng.randint(1, 3))
    ask = one_of(rng, "JSON with the keys {} only:\n", "Make JSON with {}:\n", "Keys: {}\n")
    return ask.format(", ".join(chosen)) + lines_of(rng, fields), json.dumps({key: fields[key] for key in chosen})


def from_json(rng: Random) -> Turn:
    """JSON to another notation, its keys or its values."""
    fields = record(rng, 1, 5)
    text = json.dumps(fields)
    kind = rng.randrange(5)
    if kind == 0:
        return f"List the keys: {text}", ", ".join(fields)
    if kind == 1:
        return f"List the values, one a line: {text}", "\n".join(plain(item) for item in fields.values())
    if kind == 2:
        return f"As YAML: {text}", "\n".join(f"{key}: {plain(item)}" for key, item in fields.items())
    if kind == 3:
        return f"As a query string: {text}", "&".join(f"{key}={plain(item)}" for key, item in fields.items())
    return f"As XML: {text}", "".join(f"<{key}>{plain(item)}</{key}>" for key, item in fields.items())


def edit_json(rng: Random) -> Turn:
    """Set, drop, rename or add one key."""
    fields = record(rng, 2, 4)
    key, new = rng.choice(list(fields)), identifier(rng)
    text, kind = json.dumps(fields), rng.randrange(4)
    if kind == 0:
        fresh = scalar(rng)
        return f"Set {key} to {plain(fresh)}: {text}", json.dumps(fields | {key: fresh})
    if kind == 1:
        return f"Drop {key}: {text}", json.dumps({k: v for k, v in fields.items() if k != key})
    if kind == 2:
        return f"Rename {key} to {new}: {text}", json.dumps({new if k == key else k: v for k, v in fields.items()})
    fresh = scalar(rng)
    return f"Add {new} with {plain(fresh)}: {text}", json.dumps(fields | {new: fresh})


def row_to_json(rng: Random) -> Turn:
    """A header and a row as JSON."""
    fields = record(rng, 2, 5)
    mark = rng.choice([",", ";", "|", "\t", ", "])
    header, row = mark.join(fields), mark.join(plain(item) for item in fields.values())
    return one_of(
        rng, "Row to JSON:\n", "Header, row. Give JSON.\n", "Read the row as JSON\n"
    ) + header + "\n" + row, json.dumps(fields)


def by_pattern(rng: Random) -> Turn:
    """Read a text by a pattern with named holes."""
    keys = identifiers(rng, 2, 4)
    joins = [
        rng.choice([" ", " - ", ": ", " (", ") ", " [", "] ", " / ", f" {word(rng)} ", ", ", "@", " by "]) for _ in keys
    ]
    items = {key: rng.choice([word(rng), number(rng), phrase(rng, 2, 5), code(rng), value(rng)]) for key in keys}
    pattern = "".join(f"{{{key}}}{join}" for key, join in zip(keys, joins, strict=True)).rstrip()
    text = pattern
    for key, item in items.items():
        text = text.replace(f"{{{key}}}", item)
    if rng.random() < 0.4:
        key = rng.choice(keys)
        return f"Pattern: {pattern}\nText: {text}\nWhat is {key}?", items[key]
    return f"Pattern: {pattern}\nText: {text}\nAs JSON", json.dumps({key: natural(item) for key, item in items.items()})


def fill_template(rng: Random) -> Turn:
    """Put values into the holes of a template."""
    items = {key: value(rng) for key in words(rng, 1, 4)}
    before, after = rng.choice([("{", "}"), ("<", ">"), ("$", ""), ("[", "]"), ("{{", "}}")])
    pieces = [f"{' '.join(words(rng, 1, 3))} {before}{key}{after}" for key in items]
    template = " ".join(pieces)
    answer = template
    for key, item in items.items():
        answer = answer.replace(f"{before}{key}{after}", item)
    given = rng.choice([lines_of(rng, dict(items)), json.dumps(items)])
    return one_of(rng, f"Fill in: {template}\n{given}", f"{given}\nTemplate: {template}"), answer


def describe_person(rng: Random) -> Turn:
    """Facts of a sentence as JSON or as one value."""
    name, place, age, thing = rng.choice(NAMES), rng.choice(PLACES), rng.randint(5, 99), word(rng)
    text = rng.choice(
        [
            f"{name} is {age} years old, lives in {place} and likes {thing}.",
            f"In {place} lives {name} ({age}), who sells {thing}.",
            f"{name}, {age}, from {place}, wants a {thing}.",
            f"A {thing} was sent to {name} in {place}, aged {age}.",
        ]
    )
    facts: dict[str, Scalar] = {"name": name, "age": age, "city": place, "thing": thing}
    if rng.random() < 0.4:
        key = rng.choice(list(facts))
        return f"{text}\n{key}?", plain(facts[key])
    chosen = rng.sample(list(facts), rng.randint(2, 4))
    return f"{text}\nJSON with {', '.join(chosen)}", json.dumps({key: facts[key] for key in chosen})


def listing(rng: Random) -> tuple[dict[str, list[str]], str]:
    """Groups with their fields, and the text that lists them."""
    groups = {name: identifiers(rng, 2, 5) for name in words(rng, 1, 3)}
    opening, closing, glue = rng.choice(
        [("(", ")", "\n"), (": ", "", "\n"), (" {", "}", " "), ("[", "]", "; "), ("(", ")", ", ")]
    )
    return groups, glue.join(f"{name}{opening}{', '.join(fields)}{closing}" for name, fields in groups.items())


def read_listing(rng: Random) -> Turn:
    """Find groups and fields in a listing."""
    groups, text = listing(rng)
    name = rng.choice(list(groups))
    place = rng.randrange(len(groups[name]))
    field, kind = groups[name][place], rng.randrange(5)
    if kind == 0 and sum(field in fields for fields in groups.values()) == 1:
        return f"{text}\nWhich group has {rng.choice([field, field.replace('_', ' ')])}?", name
    if kind == 1:
        return f"{text}\nList the fields of {name}", ", ".join(groups[name])
    if kind == 2:
        return f"{text}\nHow many fields has {name}?", str(len(groups[name]))
    if kind == 3:
        return f"{text}\nThe {ORDINALS[place]} field of {name}", field
    return f'{text}\nField for "{field.replace("_", " ")}" in {name}, as {name}.field', f"{name}.{field}"


def read_table(rng: Random) -> Turn:
    """Find a row or a cell of a small table."""
    columns = identifiers(rng, 2, 4)
    rows = [[name, *(number(rng) for _ in columns[1:])] for name in words(rng, 2, 4)]
    row, place = rng.choice(rows), rng.randrange(1, len(columns))
    mark = rng.choice([" | ", ",", "\t", " "])
    text = "\n".join(mark.join(cells) for cells in [columns, *rows])
    if rng.random() < 0.5:
        return f"{text}\n{columns[place]} of {row[0]}?", row[place]
    if rng.random() < 0.5:
        return f"{text}\nRow of {row[0]} as JSON", json.dumps(dict(zip(columns, row, strict=True)))
    return f"{text}\nOnly the column {columns[place]}", "\n".join(cells[place] for cells in rows)


def by_example(rng: Random) -> Turn:
    """One example of a made-up notation, then apply it."""
    size = rng.randint(2, 3)
    order = rng.sample(range(size), size)
    marks = [rng.choice(["", "<", "(", "[", "#", "@", "$", "!", word(rng) + " ", word(rng) + "="])]
    marks += [rng.choice([" ", "|", ":", "->", "/", ",", ") ", "; ", f" {word(rng)} "]) for _ in range(size - 1)]
    marks.append(rng.choice(["", ">", ")", "]", ".", ";", " " + word(rng)]))
    glue = rng.choice([" ", ", ", " and "])

    def shown(items: list[str]) -> str:
        return "".join(mark + items[place] for mark, place in zip(marks, order, strict=False)) + marks[-1]

    examples = [[value(rng) for _ in range(size)] for _ in range(rng.randint(1, 3))]
    asked = [value(rng) for _ in range(size)]
    text = "\n".join(f"{glue.join(items)} => {shown(items)}" for items in examples)
    return f"{text}\n{glue.join(asked)} =>", shown(asked)


def mapping(rng: Random) -> Turn:
    """Translate words by a table in the prompt."""
    table = dict(zip(words(rng, 4, 4), [value(rng) for _ in range(4)], strict=True))
    asked = [rng.choice(list(table)) for _ in range(rng.randint(1, 4))]
    text = rng.choice([", ", "\n"]).join(f"{key}={item}" for key, item in table.items())
    return f"{text}\nTranslate: {' '.join(asked)}", " ".join(table[key] for key in asked)


RECORDS: tuple[Exercise, ...] = (
    look_up, look_up, which_key, to_json, to_json, some_to_json, some_to_json, from_json, edit_json, row_to_json,
    by_pattern, by_pattern, fill_template, describe_person, read_listing, read_listing, read_table, by_example,
    by_example, mapping,
)  # fmt: skip
