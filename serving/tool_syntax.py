"""How a base writes a call of a function, and the grammar that makes it write one.

HERMES (Qwen, Hermes, and the default):     <tool_call>
                                            {"name": "add", "arguments": {"a": 1}}
                                            </tool_call>
LLAMA (Llama 3, one call, nothing else):    {"name": "add", "parameters": {"a": 1}}

It does: tell the syntax from a chat template, write calls, build grammars. It does not: read calls (`tool_calls`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import GrammarSource, schema_text

MOST_TOOLS_CHARACTERS = 524_288
Function = Mapping[str, Any]
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolSyntax:
    """`opening` and `closing` stand around a call (empty: the call is the whole answer); `arguments_key` is the name of
    a call's arguments.
    """

    opening: str
    closing: str
    arguments_key: str

    @property
    def is_whole_answer(self) -> bool:
        """Whether an answer is either text or one call."""
        return not self.opening

    def call_text(self, name: str, arguments: str) -> str:
        """A call as the base writes it; `arguments` are JSON."""
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments_key}": '
        return f"{self.opening}\n{head}{arguments}}}\n{self.closing}" if self.opening else f"{head}{arguments}}}"

    def calls_grammar(self, functions: Sequence[Function], *, is_many: bool) -> GrammarSource:
        """Answers that are a call of one of these functions, or several calls. Raises GrammarRefusedError."""
        more = f' ("\\n" {_literal(self.opening)} call)*' if is_many and self.opening else ""
        begin = f"{_literal(self.opening)} " if self.opening else ""
        return GrammarSource("lark", f"%llguidance {{}}\nstart: {begin}call{more}\n{self._call_rules(functions)}")

    def text_or_calls_grammar(self, functions: Sequence[Function], *, is_many: bool) -> GrammarSource:
        """Free text, bound to the functions from the moment on in which a call begins. Raises GrammarRefusedError."""
        if self.is_whole_answer:
            start = "start: TEXT | call\nTEXT: /([^{](.|\\n)*)?/\n"
        else:
            more = f' ("\\n" {_literal(self.opening)} call)*' if is_many else ""
            start = (
                f"start: TEXT | opening call{more}\nTEXT: /(.|\\n)*/\nopening[lazy]: TEXT {_literal(self.opening)}\n"
            )
        return GrammarSource("lark", f"%llguidance {{}}\n{start}{self._call_rules(functions)}")

    def json_or_calls_grammar(
        self, functions: Sequence[Function], schema: Mapping[str, Any], *, is_many: bool
    ) -> GrammarSource:
        """JSON of a schema, or calls and nothing else. Raises GrammarRefusedError, also where one cannot be told from
        the other.
        """
        if self.is_whole_answer:
            raise GrammarRefusedError("this base writes calls as plain JSON, which cannot be told from the answer")
        calls = self.calls_grammar(functions, is_many=is_many).text
        begun, start, rest = calls.partition("\nstart: ")
        return GrammarSource("lark", f"{begun}{start}answer | {rest}answer: %json {schema_text(schema)}\n")

    def _call_rules(self, functions: Sequence[Function]) -> str:
        rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(functions)))]
        for index, function in enumerate(functions):
            head, _, tail = self.call_text(function["name"], "\0").removeprefix(self.opening).partition("\0")
            schema = schema_text(function.get("parameters") or NO_PARAMETERS)
            rules.append(f"call_{index}: {_literal(head)} arguments_{index} {_literal(tail)}")
            rules.append(f"arguments_{index}: %json {schema}")
        text = "\n".join(rules) + "\n"
        if len(text) > MOST_TOOLS_CHARACTERS:
            raise GrammarRefusedError(f"the schemas of the functions have more than {MOST_TOOLS_CHARACTERS} characters")
        return text


HERMES = ToolSyntax("<tool_call>", "</tool_call>", "arguments")
LLAMA = ToolSyntax("", "", "parameters")


def syntax_shown_by(template: str) -> ToolSyntax | None:
    """The syntax that a chat template teaches its model; None where it shows none of these."""
    if HERMES.opening in template:
        # Some templates write calls as <function=name> elements inside of the same marker.
        return None if "<function=" in template else HERMES
    return LLAMA if '"parameters": ' in template and '"name": ' in template else None


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
