"""What a client asks an answer to follow, within the bounds that are checked before anything is compiled.

It does: hold the text of a schema, a pattern, choices or a grammar, and refuse what is too large, too deep, or points
outside of itself. It does not: compile (`compiler`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec

from serving.grammars.errors import GrammarRefusedError

MOST_SCHEMA_CHARACTERS = 131_072
MOST_SCHEMA_DEPTH = 48
MOST_SCHEMA_VALUES = 20_000
MOST_ENUM_VALUES = 2_000
MOST_REGEX_CHARACTERS = 4_096
MOST_GRAMMAR_CHARACTERS = 65_536
MOST_CHOICES = 1_000
MOST_CHOICE_CHARACTERS = 1_024
# llguidance takes remainders in 32 bits and does not see an overflow: numbers that are no multiples would pass.
MOST_MULTIPLE_DIGITS = 8

# One blank, or a line break with its indentation: what people and json.dumps write, and never blanks without end.
JSON_SPACE = r"([ ]|\n[ ]{0,32})"
# `temperature` and `stop` (it takes tokens back) are attributes that the sampler does not honour.
_UNHONOURED = re.compile(r"^\s*[\w-]+\s*\[[^\]]*\b(temperature|stop)\s*=", re.MULTILINE)

Kind = Literal["json", "regex", "choice", "lark"]
Schema = Mapping[str, Any] | bool


class GrammarSource(msgspec.Struct, frozen=True):
    """`text` is a JSON schema, a regular expression, a JSON list of texts, or a grammar (Lark, or GBNF)."""

    kind: Kind
    text: str


def from_schema(schema: Schema) -> GrammarSource:
    """Answers that are JSON of this schema. Raises GrammarRefusedError."""
    return GrammarSource("json", schema_text(schema))


def from_schema_text(text: str) -> GrammarSource:
    """The same for a schema that is written as JSON. Raises GrammarRefusedError."""
    if len(text) > MOST_SCHEMA_CHARACTERS:
        raise GrammarRefusedError(f"the schema has {len(text)} characters; at most {MOST_SCHEMA_CHARACTERS}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise GrammarRefusedError("the schema is not JSON") from None
    if not isinstance(schema, (dict, bool)):
        raise GrammarRefusedError("a schema is a JSON object")
    return from_schema(schema)


def schema_text(schema: Schema) -> str:
    """A schema within its bounds, as JSON that llguidance reads. Raises GrammarRefusedError."""
    _check_schema(schema)
    if schema is False:
        raise GrammarRefusedError("the schema `false` allows nothing")
    fields: Mapping[str, Any] = {} if schema is True else schema
    text = json.dumps({**fields, "x-guidance": {"whitespace_pattern": JSON_SPACE}}, ensure_ascii=False)
    if len(text) > MOST_SCHEMA_CHARACTERS:
        raise GrammarRefusedError(f"the schema has {len(text)} characters; at most {MOST_SCHEMA_CHARACTERS}")
    return text


def from_regex(pattern: str) -> GrammarSource:
    """Answers that match a pattern as a whole. Raises GrammarRefusedError."""
    if len(pattern) > MOST_REGEX_CHARACTERS:
        raise GrammarRefusedError(f"the pattern has {len(pattern)} characters; at most {MOST_REGEX_CHARACTERS}")
    return GrammarSource("regex", pattern)


def from_choices(choices: Sequence[str]) -> GrammarSource:
    """Answers that are one of some texts. Raises GrammarRefusedError."""
    if not 1 <= len(choices) <= MOST_CHOICES:
        raise GrammarRefusedError(f"there are {len(choices)} choices; 1 to {MOST_CHOICES} are possible")
    longest = max(map(len, choices))
    if longest > MOST_CHOICE_CHARACTERS:
        raise GrammarRefusedError(f"a choice has {longest} characters; at most {MOST_CHOICE_CHARACTERS}")
    return GrammarSource("choice", json.dumps(list(choices), ensure_ascii=False))


def from_grammar(text: str) -> GrammarSource:
    """Answers of a context-free grammar. Raises GrammarRefusedError."""
    if len(text) > MOST_GRAMMAR_CHARACTERS:
        raise GrammarRefusedError(f"the grammar has {len(text)} characters; at most {MOST_GRAMMAR_CHARACTERS}")
    if found := _UNHONOURED.search(text):
        raise GrammarRefusedError(f"the attribute `{found[1]}` of a rule is not offered")
    return GrammarSource("lark", text)


def _check_schema(schema: Schema) -> None:
    """Depth, size, and references that stay within: nothing is fetched for a schema."""
    values = 0
    pending: list[tuple[Any, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        values += 1
        if depth > MOST_SCHEMA_DEPTH:
            raise GrammarRefusedError(f"the schema is nested deeper than {MOST_SCHEMA_DEPTH} levels")
        if values > MOST_SCHEMA_VALUES:
            raise GrammarRefusedError(f"the schema has more than {MOST_SCHEMA_VALUES} values")
        if isinstance(value, Mapping):
            _check_object(value)
        pending += [(child, depth + 1) for child in _children(value)]


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _check_object(value: Mapping[str, Any]) -> None:
    reference = value.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise GrammarRefusedError(f"`$ref` {reference[:80]!r} leads outside of the schema; only `#...` is followed")
    if "x-guidance" in value:
        raise GrammarRefusedError("the keyword `x-guidance` is not offered")
    _check_multiple(value.get("multipleOf"))
    options = value.get("enum")
    if isinstance(options, list) and len(options) > MOST_ENUM_VALUES:
        raise GrammarRefusedError(f"an `enum` has {len(options)} values; at most {MOST_ENUM_VALUES}")


def _check_multiple(multiple: object) -> None:
    if isinstance(multiple, bool) or not isinstance(multiple, (int, float)):
        return  # a property of this name, or nonsense that the compiler names
    parts = Decimal(repr(multiple)).normalize().as_tuple()
    decimals = -parts.exponent if isinstance(parts.exponent, int) else 0
    if max(decimals, len(parts.digits) - min(decimals, 0)) > MOST_MULTIPLE_DIGITS:
        raise GrammarRefusedError(
            f"`multipleOf` {multiple!r:.40} cannot be followed exactly; it may have at most {MOST_MULTIPLE_DIGITS} "
            "digits, and as many decimals"
        )
