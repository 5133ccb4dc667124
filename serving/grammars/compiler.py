"""Compiles grammars for one tokenizer: the one door to llguidance.

It does: translate a client's source into llguidance's own form, and compile that within limits of work and memory.
It does not: bound the time (`worker` is a process that can be ended; the engine compiles only what has passed it).

Source of the meaning of grammars and limits: llguidance's docs/syntax.md, docs/json_schema.md and `ParserLimits`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import llguidance
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import GrammarSource

LONGEST_REASON_CHARACTERS = 300
QUIET = 0


class GrammarCompiler:
    """A base's tokenizer as llguidance knows it. Safe to use from several threads."""

    def __init__(self, tokenizer: llguidance.LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._limits = llguidance.LLParserLimits(
            max_items_in_row=1_000,  # the work for a token grows with its square: 0.1 s here, 1.7 s at 2,000
            initial_lexer_fuel=1_000_000,
            step_lexer_fuel=200_000,
            step_max_items=20_000,
            max_lexer_states=50_000,
            max_grammar_size=200_000,
            verbose_errors=False,
        )

    @classmethod
    def load(cls, tokenizer_file: Path, *, vocabulary_tokens: int, end_token_ids: Sequence[int]) -> Self:
        """Read a `tokenizer.json` (a second for 150,000 tokens). Raises GrammarRefusedError where it is of a kind
        that llguidance does not know.
        """
        try:
            tokenizer = llguidance.LLTokenizer(
                tokenizer_file.read_text(), n_vocab=vocabulary_tokens, eos_token=list(end_token_ids) or None
            )
        except (ValueError, OSError) as error:
            raise GrammarRefusedError(f"this base's tokenizer cannot follow a grammar ({_short(error)})") from None
        return cls(tokenizer)

    @property
    def vocabulary_tokens(self) -> int:
        """Bits of a mask."""
        return self._tokenizer.vocab_size

    def translate(self, source: GrammarSource) -> str:
        """llguidance's form of a source. Raises GrammarRefusedError for what cannot be translated."""
        match source.kind:
            case "json":
                return llguidance.LLMatcher.grammar_from_json_schema(source.text)
            case "regex":
                return llguidance.LLMatcher.grammar_from_regex(source.text)
            case "choice":
                options = [json.dumps(option, ensure_ascii=False) for option in json.loads(source.text)]
                return "start: " + " | ".join(options)
            case "lark":
                try:
                    return any_to_lark(source.text)
                except (GbnfToLarkError, RecursionError, IndexError, ValueError) as error:
                    raise GrammarRefusedError(f"it cannot be read: {_short(error)}") from None
                except Exception as error:  # its converter raises this very class for rules that are missing
                    if type(error) is not Exception:
                        raise
                    raise GrammarRefusedError(f"it cannot be read: {_short(error)}") from None

    def idle_matcher(self) -> llguidance.LLMatcher:
        """A matcher that follows nothing."""
        return llguidance.LLMatcher(self._tokenizer, "", log_level=QUIET)

    def compile(self, grammar: str) -> llguidance.LLMatcher:
        """A matcher at the beginning of the grammar. Raises GrammarRefusedError."""
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=QUIET, limits=self._limits)
        if matcher.is_error():
            raise GrammarRefusedError(_short(matcher.get_error()))
        return matcher


def problem_of(matcher: llguidance.LLMatcher) -> str:
    """Why a matcher in an error cannot go on, for the client."""
    reason = _short(matcher.get_error())
    if reason.startswith("NoExtension"):
        return "no text matches it here"
    return f"it needs too much work here; make its patterns and alternatives simpler ({reason})"


def _short(error: object) -> str:
    """The first line of a message, and the one that says what is wrong where it has one, bounded."""
    first, *others = str(error).strip().split("\n")
    said = next((line.removeprefix("error: ") for line in others if line.startswith("error: ")), "")
    line = first[:LONGEST_REASON_CHARACTERS].rstrip(".:")
    return f"{line}: {said[:LONGEST_REASON_CHARACTERS].rstrip('.')}" if said else line
