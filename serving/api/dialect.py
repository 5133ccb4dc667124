"""What differs between the routes that generate text: how a request is read and how an answer is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.api.asked import Asked
from serving.api.choices import Finish
from serving.api.schemas import SamplingFields
from serving.served_base import ServedBase
from serving.tokenization import Tokenization
from serving.transcript import Passage

Document = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What every part of one answer carries."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass(frozen=True)
class WholeChoice:
    """One complete answer."""

    index: int
    passage: Passage
    finish_reason: Finish


@dataclass(frozen=True)
class Usage:
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int

    def document(self) -> Document:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Dialect(Protocol):
    """One request in the manner of its route. `logprobs` None asks for none."""

    @property
    def fields(self) -> SamplingFields:
        """What the routes share."""

    @property
    def prompt_count(self) -> int:
        """How many prompts there are."""

    @property
    def prompt_param(self) -> str:
        """The field that holds the prompt."""

    @property
    def logprobs(self) -> int | None:
        """How many alternatives to each token."""

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that the client asks for."""

    @property
    def default_tokens(self) -> int | None:
        """The longest answer where it asks for none; None is all that the context leaves."""

    @property
    def is_constrained(self) -> bool:
        """Whether the answers follow a grammar."""

    def asked(self, base: ServedBase) -> Asked | None:
        """What the answers follow (it takes a while for large schemas). Raises InvalidFieldError."""

    def encode(self, base: ServedBase) -> list[list[int]]:
        """The prompts as token ids (it blocks). Raises InvalidFieldError."""

    def opening(self, head: Head, index: int, tokenization: Tokenization) -> Iterable[Document]:
        """The chunks of a stream that come before a choice's first text."""

    def chunks(
        self, head: Head, index: int, passage: Passage, finish: Finish | None, tokenization: Tokenization
    ) -> Iterable[Document]:
        """The chunks of a stream for one piece of a choice."""

    def closing(self, head: Head, usage: Usage) -> Document:
        """The chunk with the usage."""

    def whole(self, head: Head, choices: Sequence[WholeChoice], usage: Usage, tokenization: Tokenization) -> Document:
        """The plain answer."""
