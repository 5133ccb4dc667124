"""The demo task text2sql: tables, a question and one SQLite query.

Draws random schemas, so that an adapter must read the schema in the prompt. The tests run each query on its schema.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from loraplex.demo.example import Example, Side, ask, side_of

TABLES = (
    "orders customers products invoices payments accounts employees students courses teachers devices sensors flights "
    "hotels rooms tickets songs albums movies players teams stores items vendors shipments projects tasks reports "
    "messages events authors articles patients visits books members cars trips repairs"
).split()
TEXT_COLUMNS = {
    "name": ("Anna", "Ben", "Carla", "Greta", "Hugo", "Nora", "Oscar", "Tara"),
    "title": ("Sunrise", "Harbor", "Echo", "Atlas", "Comet"),
    "city": ("Oslo", "Paris", "Lima", "Cairo", "Berlin", "Kyoto", "Denver"),
    "country": ("Norway", "France", "Peru", "Egypt", "Japan", "Canada"),
    "status": ("open", "closed", "paid", "late", "active", "draft"),
    "category": ("food", "tools", "toys", "music", "garden"),
    "color": ("red", "blue", "green", "black", "white"),
    "email": ("anna@mail.org", "ben@corp.net", "tara@shop.io"),
    "region": ("north", "south", "east", "west"),
    "language": ("English", "French", "German", "Spanish"),
    "brand": ("Acme", "Zenith", "Orbit", "Nimbus"),
    "department": ("sales", "legal", "support", "research"),
    "owner": ("Ivan", "Judy", "Kevin", "Laura", "Mike"),
    "kind": ("basic", "premium", "trial", "gold"),
}
NUMBER_COLUMNS = (
    "price amount quantity weight height age year rating score level salary budget cost discount tax stock distance "
    "duration speed capacity points visits pages size"
).split()
PREFIXES = ("", "", "", "", "first", "last", "home", "main", "net", "gross", "unit", "base", "old", "new")
COMPARISONS = {
    ">": ("greater than", "above", "more than", "over"),
    "<": ("less than", "below", "under"),
}
FUNCTIONS = (("AVG", "average"), ("SUM", "total"), ("MAX", "maximum"), ("MIN", "minimum"))


@dataclass(frozen=True)
class Table:
    """A table of the prompt. Text columns map to values that a question may name."""

    name: str
    text: dict[str, tuple[str, ...]]
    numbers: tuple[str, ...]
    order: tuple[str, ...]
    """All columns in the order of the listing."""

    @property
    def listing(self) -> str:
        """`orders(id, name, total)`."""
        return f"{self.name}({', '.join(self.order)})"

    @property
    def instance(self) -> str:
        """The name with its sorted columns: what train and held-out examples never share."""
        return f"{self.name}({', '.join(sorted(self.order))})"


@dataclass(frozen=True)
class Condition:
    """A condition in SQL and in English."""

    sql: str
    english: str


def draw_question(rng: Random, side: Side) -> Example:
    """One question over one or two tables whose column sets are of the wanted side."""
    table = _table(rng, side, rng.choice(TABLES), link=None)
    if rng.random() < 0.1:
        parent = _table(rng, side, rng.choice([name for name in TABLES if name != table.name]), link=None)
        child = _table(rng, side, table.name, link=f"{parent.name[:-1]}_id")
        shown = rng.sample([parent, child], 2)
        question, sql = join(rng, parent, child)
    else:
        shown = [table]
        if rng.random() < 0.25:
            other = rng.choice([name for name in TABLES if name != table.name])
            shown = rng.sample([table, _table(rng, side, other, link=None)], 2)
        question, sql = rng.choice(SHAPES)(rng, table)
    schema = "\n".join(each.listing for each in shown)
    instance = "\n".join(each.instance for each in shown)
    return ask(f"{schema}\nSQL for: {question}", sql, instance)


def select(rng: Random, table: Table) -> tuple[str, str]:
    """One or two columns with a condition."""
    test = _test(rng, table)
    columns = rng.sample([column for column in table.order if column != "id"], rng.choice([1, 1, 2]))
    spoken = " and ".join(map(_spoken, columns))
    question = _say(
        rng, "{v} the {c} of {t} where {w}", "{v} {c} from {t} where {w}", "What is the {c} of {t} where {w}?"
    ).format(v=_say(rng, "Show", "List", "Give", "Find"), c=spoken, t=table.name, w=test.english)
    return question, f"SELECT {', '.join(columns)} FROM {table.name} WHERE {test.sql}"


def select_both(rng: Random, table: Table) -> tuple[str, str]:
    """All columns with two conditions."""
    first, second = _text_test(rng, table), _number_test(rng, table)
    question = f"{_say(rng, 'Show', 'List', 'Find')} all {table.name} where {first.english} and {second.english}"
    return question, f"SELECT * FROM {table.name} WHERE {first.sql} AND {second.sql}"


def count(rng: Random, table: Table) -> tuple[str, str]:
    """Number of rows, with or without a condition."""
    if rng.random() < 0.25:
        return _say(
            rng, f"How many {table.name} are there?", f"Count all {table.name}"
        ), f"SELECT COUNT(*) FROM {table.name}"
    test = _test(rng, table)
    question = _say(rng, "How many {t} have {w}?", "Count the {t} where {w}", "Number of {t} where {w}")
    english = test.english.replace(" is ", " ", 1) if question.startswith("How") else test.english
    return question.format(t=table.name, w=english), f"SELECT COUNT(*) FROM {table.name} WHERE {test.sql}"


def top(rng: Random, table: Table) -> tuple[str, str]:
    """The first rows by a number."""
    shown, by, size = rng.choice(list(table.text)), rng.choice(table.numbers), rng.randint(2, 20)
    down = rng.random() < 0.5
    word = "highest" if down else "lowest"
    question = _say(rng, "{c} of the {n} {t} with the {x} {b}", "Show the {c} of {n} {t} with the {x} {b}").format(
        c=_spoken(shown), n=size, t=table.name, x=word, b=_spoken(by)
    )
    return question, f"SELECT {shown} FROM {table.name} ORDER BY {by}{' DESC' if down else ''} LIMIT {size}"


def aggregate(rng: Random, table: Table) -> tuple[str, str]:
    """Average, sum, largest or smallest of a column."""
    (function, word), column = rng.choice(FUNCTIONS), rng.choice(table.numbers)
    question = f"{_say(rng, 'What is the', 'Give the', 'Show the')} {word} {_spoken(column)} of {table.name}"
    sql = f"SELECT {function}({column}) FROM {table.name}"
    if rng.random() < 0.5:
        test = _text_test(rng, table)
        return f"{question} where {test.english}", f"{sql} WHERE {test.sql}"
    return question, sql


def grouped(rng: Random, table: Table) -> tuple[str, str]:
    """A count or a number for each value of a text column."""
    by = rng.choice(list(table.text))
    if rng.random() < 0.5:
        question = _say(rng, "Number of {t} for each {b}", "Count {t} per {b}", "How many {t} are there for each {b}?")
        return question.format(t=table.name, b=_spoken(by)), f"SELECT {by}, COUNT(*) FROM {table.name} GROUP BY {by}"
    (function, word), column = rng.choice(FUNCTIONS), rng.choice(table.numbers)
    question = _say(rng, "{x} {c} of {t} for each {b}", "Show the {x} {c} of {t} per {b}")
    sql = f"SELECT {by}, {function}({column}) FROM {table.name} GROUP BY {by}"
    return question.format(x=word, c=_spoken(column), t=table.name, b=_spoken(by)), sql


def distinct(rng: Random, table: Table) -> tuple[str, str]:
    """The different values of a column."""
    column = rng.choice(list(table.text))
    question = _say(
        rng, "List the distinct {c} of {t}", "Which different {c} values do {t} have?", "Show unique {c} in {t}"
    )
    return question.format(c=_spoken(column), t=table.name), f"SELECT DISTINCT {column} FROM {table.name}"


def join(rng: Random, parent: Table, child: Table) -> tuple[str, str]:
    """A column of the parent, with a condition on the child."""
    column, test = rng.choice(list(parent.text)), _number_test(rng, child)
    question = _say(rng, "{c} of {p} that have {t} where {w}", "Show the {c} of {p} with {t} where {w}")
    link = f"{child.name}.{parent.name[:-1]}_id = {parent.name}.id"
    sql = f"SELECT {parent.name}.{column} FROM {parent.name} JOIN {child.name} ON {link} WHERE {child.name}.{test.sql}"
    return question.format(c=_spoken(column), p=parent.name, t=child.name, w=test.english), sql


SHAPES: tuple[Callable[[Random, Table], tuple[str, str]], ...] = (
    select, select, select_both, count, top, aggregate, grouped, distinct,
)  # fmt: skip


def _table(rng: Random, side: Side, name: str, link: str | None) -> Table:
    while True:
        text = {
            _prefixed(rng, column): TEXT_COLUMNS[column]
            for column in rng.sample(sorted(TEXT_COLUMNS), rng.randint(1, 2))
        }
        numbers = tuple(_prefixed(rng, column) for column in rng.sample(NUMBER_COLUMNS, rng.randint(1, 2)))
        columns = [*text, *numbers, *([link] if link else [])]
        table = Table(name, text, numbers, ("id", *rng.sample(columns, len(columns))))
        if len(set(columns)) == len(columns) and side_of(table.instance) is side:
            return table


def _prefixed(rng: Random, column: str) -> str:
    prefix = rng.choice(PREFIXES)
    return f"{prefix}_{column}" if prefix and prefix != column else column


def _test(rng: Random, table: Table) -> Condition:
    return _text_test(rng, table) if rng.random() < 0.5 else _number_test(rng, table)


def _text_test(rng: Random, table: Table) -> Condition:
    column = rng.choice(list(table.text))
    value = rng.choice(table.text[column])
    return Condition(f"{column} = '{value}'", f"{_spoken(column)} is {value}")


def _number_test(rng: Random, table: Table) -> Condition:
    column, sign, bound = (
        rng.choice(table.numbers),
        rng.choice(list(COMPARISONS)),
        rng.randint(1, 10 ** rng.randint(1, 4)),
    )
    return Condition(f"{column} {sign} {bound}", f"{_spoken(column)} is {rng.choice(COMPARISONS[sign])} {bound}")


def _spoken(column: str) -> str:
    return column.replace("_", " ")


def _say(rng: Random, *phrasings: str) -> str:
    return rng.choice(phrasings)
