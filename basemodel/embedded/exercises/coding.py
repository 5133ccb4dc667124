"""Exercises that write, change or read a few lines of Python, URLs and commands.

Expressions over lists of records stand in for the skill of choosing fields by their names; there is no SQL here.
"""

import json
from random import Random

from basemodel.embedded.exercises.exercise import Exercise, Turn
from basemodel.embedded.exercises.lexicon import THINGS, identifier, identifiers, one_of, phrase, value, word, words

TYPES = ("int", "str", "float", "bool", "list[str]")
COMPARISONS = {
    ">": ("greater than", "above", "more than", "over"),
    "<": ("less than", "below", "under"),
    "==": ("equal to", "exactly"),
    ">=": ("at least",),
    "<=": ("at most",),
    "!=": ("different from", "not"),
}


def spoken(name: str) -> str:
    """An identifier as people say it."""
    return name.replace("_", " ")


def literal(rng: Random) -> str:
    """A Python literal: a number or a quoted text."""
    return str(rng.randint(0, 1000)) if rng.random() < 0.6 else json.dumps(word(rng))


def record_expression(rng: Random) -> Turn:
    """A question about a list of records as a Python expression."""
    group, fields = rng.choice(THINGS) + "s", identifiers(rng, 3, 5)
    wanted, tested = rng.sample(fields, 2)
    sign = rng.choice(list(COMPARISONS))
    bound = str(rng.randint(0, 1000)) if sign not in ("==", "!=") else literal(rng)
    head = f"{group}: {', '.join(fields)}\n"
    test = f"r.{tested} {sign} {bound}"
    spoken_test = f"{spoken(tested)} is {rng.choice(COMPARISONS[sign])} {bound.strip(chr(34))}"
    kind, size = rng.randrange(6), rng.randint(2, 20)
    if kind == 0:
        return f"{head}{spoken(wanted)} where {spoken_test}", f"[r.{wanted} for r in {group} if {test}]"
    if kind == 1:
        return f"{head}number of {group} whose {spoken_test}", f"sum(1 for r in {group} if {test})"
    if kind == 2:
        return f"{head}sorted by {spoken(wanted)}, first {size}", f"sorted({group}, key=lambda r: r.{wanted})[:{size}]"
    if kind == 3:
        name, spoken_name = rng.choice([("max", "largest"), ("min", "smallest")])
        return f"{head}{spoken_name} {spoken(wanted)}", f"{name}(r.{wanted} for r in {group})"
    if kind == 4:
        return f"{head}is any {spoken_test}?", f"any({test} for r in {group})"
    return f"{head}total {spoken(wanted)} if {spoken_test}", f"sum(r.{wanted} for r in {group} if {test})"


def function_stub(rng: Random) -> Turn:
    """A function that returns an operation on its arguments."""
    name, (a, b) = "_".join(words(rng, 1, 2)), words(rng, 2, 2)
    operations = [("sum", "+"), ("product", "*"), ("difference", "-"), ("quotient", "/"), ("remainder", "%")]
    spoken_name, sign = rng.choice(operations)
    ask = one_of(
        rng,
        f"Write a function {name} that returns the {spoken_name} of {a} and {b}.",
        f"def {name}({a}, {b}): return their {spoken_name}",
    )
    return ask, f"def {name}({a}, {b}):\n    return {a} {sign} {b}"


def dataclass_stub(rng: Random) -> Turn:
    """A dataclass from a list of fields."""
    name, fields = word(rng).capitalize(), {field: rng.choice(TYPES) for field in identifiers(rng, 1, 4)}
    listed = ", ".join(f"{field} ({kind})" for field, kind in fields.items())
    lines = "".join(f"    {field}: {kind}\n" for field, kind in fields.items())
    return f"A dataclass {name} with {listed}", f"@dataclass\nclass {name}:\n{lines}".rstrip()


def constructor(rng: Random) -> Turn:
    """A class whose constructor stores its arguments."""
    name, fields = word(rng).capitalize(), identifiers(rng, 1, 3)
    body = "\n".join(f"        self.{field} = {field}" for field in fields)
    answer = f"class {name}:\n    def __init__(self, {', '.join(fields)}):\n{body}"
    return f"Class {name} that stores {', '.join(fields)}", answer


def call(rng: Random) -> Turn:
    """A call with keyword arguments."""
    name, given = identifier(rng), {key: literal(rng) for key in identifiers(rng, 1, 4)}
    listed = " and ".join(f"{spoken(key)} {item.strip(chr(34))}" for key, item in given.items())
    return f"Call {name} with {listed}.", f"{name}({', '.join(f'{key}={item}' for key, item in given.items())})"


def assignments(rng: Random) -> Turn:
    """The value of a variable after some assignments."""
    names = words(rng, 2, 4)
    lines: list[str] = []
    values: dict[str, str] = {}
    for place, name in enumerate(names):
        if place and rng.random() < 0.4:
            source = rng.choice(names[:place])
            values[name] = values[source]
            lines.append(f"{name} = {source}")
        else:
            values[name] = literal(rng)
            lines.append(f"{name} = {values[name]}")
    name = rng.choice(names)
    return "\n".join(lines) + one_of(rng, f"\nprint({name})", f"\nWhat is {name}?"), values[name].strip('"')


def dict_and_list(rng: Random) -> Turn:
    """Dictionary and list literals from words."""
    name = identifier(rng)
    if rng.random() < 0.5:
        items = words(rng, 2, 5)
        quoted = ", ".join(json.dumps(item) for item in items)
        return f"A Python list {name} of {', '.join(items)}", f"{name} = [{quoted}]"
    pairs = {key: literal(rng) for key in words(rng, 1, 4)}
    listed = ", ".join(f"{key} is {item.strip(chr(34))}" for key, item in pairs.items())
    inner = ", ".join(f"{json.dumps(key)}: {item}" for key, item in pairs.items())
    return f"A Python dict {name}: {listed}", f"{name} = {{{inner}}}"


def rename(rng: Random) -> Turn:
    """Rename a variable in a snippet."""
    old, other, new = words(rng, 3, 3)
    snippet = rng.choice(
        [
            f"for {old} in {other}:\n    print({old})",
            f"{old} = {other}[0]\nreturn {old}",
            f"if {old} is None:\n    {old} = {other}()",
            f"with open({other}) as {old}:\n    text = {old}.read()",
            f"{old} = [x for x in {other} if x]",
            f"while {old} < len({other}):\n    {old} += 1",
        ]
    )
    return f"Rename {old} to {new}:\n{snippet}", snippet.replace(old, new)


def imports(rng: Random) -> Turn:
    """Import statements."""
    module, names = ".".join(words(rng, 1, 2)), words(rng, 1, 3)
    if rng.random() < 0.5:
        return f"Import {', '.join(names)} from {module}", f"from {module} import {', '.join(names)}"
    short = names[0][:2]
    return f"Import {module} as {short}", f"import {module} as {short}"


def loop(rng: Random) -> Turn:
    """A loop over a list or a range."""
    item, items, size = *words(rng, 2, 2), rng.randint(2, 100)
    if rng.random() < 0.5:
        return f"Print each {item} in {items}", f"for {item} in {items}:\n    print({item})"
    return f"Loop {item} from 0 to {size - 1} and call {items}", f"for {item} in range({size}):\n    {items}({item})"


def address(rng: Random) -> Turn:
    """A URL from its parts, or a part of a URL."""
    host, path = f"{word(rng)}.{rng.choice(['com', 'org', 'net'])}", "/".join(words(rng, 1, 3))
    pairs = {key: rng.choice([word(rng), str(rng.randint(0, 999))]) for key in identifiers(rng, 1, 3)}
    url = f"https://{host}/{path}?{'&'.join(f'{key}={item}' for key, item in pairs.items())}"
    kind = rng.randrange(4)
    if kind == 0:
        return f"Host of {url}", host
    if kind == 1:
        return f"Path of {url}", f"/{path}"
    if kind == 2:
        return f"Parameters of {url} as JSON", json.dumps(pairs)
    listed = ", ".join(f"{key} {item}" for key, item in pairs.items())
    return f"URL: host {host}, path {path}, {listed}", url


def command(rng: Random) -> Turn:
    """A command line from its parts."""
    name, options, target = word(rng), {key: value(rng).split()[0] for key in words(rng, 1, 3)}, word(rng)
    listed = ", ".join(f"{key} {item}" for key, item in options.items())
    flags = " ".join(f"--{key} {item}" for key, item in options.items())
    return f"Run {name} on {target} with {listed}", f"{name} {flags} {target}"


def docstring(rng: Random) -> Turn:
    """Add a docstring or a comment to a function."""
    name, argument, text = identifier(rng), word(rng), phrase(rng, 2, 6).capitalize() + "."
    head = f"def {name}({argument}):"
    body = rng.choice([f"    return {argument}", "    pass", f"    print({argument})"])
    return f'Add the docstring "{text}"\n{head}\n{body}', f'{head}\n    """{text}"""\n{body}'


CODING: tuple[Exercise, ...] = (
    record_expression, record_expression, record_expression, function_stub, dataclass_stub, constructor, call, call,
    assignments, dict_and_list, rename, imports, loop, address, command, docstring,
)  # fmt: skip
