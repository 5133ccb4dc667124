"""What a request asks its answers to follow, and the field that asks it.

It does: turn `response_format` and `structured_outputs` into the source of a grammar, within its bounds.
It does not: compile it (`serving.grammars.checker`), or know tools (`tools`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.api.schemas import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, SamplingFields, StructuredOutputs
from serving.errors import InvalidFieldError
from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import (
    GrammarSource,
    from_choices,
    from_grammar,
    from_regex,
    from_schema,
    from_schema_text,
)

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Asked:
    """`source` in the words of the field `param`."""

    source: GrammarSource
    param: str

    def refused(self, reason: str) -> InvalidFieldError:
        """The error for a grammar that cannot be followed."""
        return InvalidFieldError(f"`{self.param}`: {reason}.", param=self.param)


def asked_by(make: Callable[[], GrammarSource], param: str) -> Asked:
    """The source that a field asks for. Raises InvalidFieldError where it is refused."""
    try:
        return Asked(make(), param)
    except GrammarRefusedError as error:
        raise InvalidFieldError(f"`{param}`: {error.reason}.", param=param) from None


def refuse_contradictions(fields: SamplingFields, params: list[str]) -> None:
    """At most one field says what the answer follows, and then a text may end. Raises InvalidFieldError."""
    if len(params) > 1:
        raise InvalidFieldError(f"`{params[1]}` cannot be combined with `{params[0]}`.", param=params[1])
    if params and fields.ignore_eos:
        raise InvalidFieldError(f"`ignore_eos` cannot be combined with `{params[0]}`.", param="ignore_eos")


def schema_of(response_format: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The schema that a `response_format` asks for; None for plain text."""
    match response_format:
        case JsonSchemaFormat(json_schema=described):
            return ANY_OBJECT if described.schema is None else described.schema
        case JsonObjectFormat():
            return ANY_OBJECT
        case _:
            return None


def asked_by_format(response_format: ResponseFormat | None) -> Asked | None:
    """What a `response_format` asks for; None for plain text. Raises InvalidFieldError."""
    schema = schema_of(response_format)
    if schema is None:
        return None
    is_described = isinstance(response_format, JsonSchemaFormat)
    return asked_by(
        lambda: from_schema(schema), "response_format.json_schema.schema" if is_described else "response_format"
    )


def asked_by_structure(outputs: StructuredOutputs) -> Asked:
    """What `structured_outputs` asks for. Raises InvalidFieldError."""
    schema, regex, choice, grammar = outputs.json, outputs.regex, outputs.choice, outputs.grammar
    if sum(each is not None for each in (schema, regex, choice, grammar)) != 1:
        raise InvalidFieldError(
            "`structured_outputs` has exactly one of `json`, `regex`, `choice` and `grammar`.",
            param="structured_outputs",
        )
    if isinstance(schema, str):
        return asked_by(lambda: from_schema_text(schema), "structured_outputs.json")
    if schema is not None:
        return asked_by(lambda: from_schema(schema), "structured_outputs.json")
    if regex is not None:
        return asked_by(lambda: from_regex(regex), "structured_outputs.regex")
    if choice is not None:
        return asked_by(lambda: from_choices(choice), "structured_outputs.choice")
    assert grammar is not None
    return asked_by(lambda: from_grammar(grammar), "structured_outputs.grammar")
