"""What `checker` and `worker` say to each other, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from serving.grammars.errors import GrammarRefusedError


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`compile_seconds` is processor time for one grammar, `compile_bytes` what it may add to the process."""

    tokenizer_file: str
    vocabulary_tokens: int
    end_token_ids: tuple[int, ...]
    compile_seconds: int
    compile_bytes: int


class WorkerReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to one source, and the first line of all (without either): it is ready."""

    grammar: str | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a source: its grammar, or the reason why it is refused."""

    grammar: str
    refusal: str | None = None

    @property
    def characters(self) -> int:
        """What remembering it costs, roughly."""
        return len(self.grammar) + len(self.refusal or "")

    def opened(self) -> str:
        """The grammar. Raises GrammarRefusedError."""
        if self.refusal is not None:
            raise GrammarRefusedError(self.refusal)
        return self.grammar
