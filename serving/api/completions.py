"""POST /v1/completions: prompts as texts or token ids in, their continuations out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from serving.api.asked import Asked, asked_by_structure, refuse_contradictions
from serving.api.body import read_body
from serving.api.choices import Finish
from serving.api.dialect import Document, Head, Usage, WholeChoice
from serving.api.generation import generate
from serving.api.limits import refuse_hopeless
from serving.api.logprobs import completion_logprobs
from serving.api.sampling import check_token_ids
from serving.api.schemas import MOST_PROMPTS, CompletionRequest
from serving.errors import InvalidFieldError
from serving.served_base import ServedBase
from serving.tokenization import Tokenization
from serving.transcript import Passage

DEFAULT_TOKENS = 16
Prompt = str | list[int]


@post("/v1/completions", name="completions", status_code=200)
async def completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """Continue prompts, plain or as a stream."""
    return await generate(request, lambda: _read(request))


async def _read(request: Request[Any, Any, Any]) -> CompletionDialect:
    return CompletionDialect(await read_body(request, CompletionRequest))


class CompletionDialect:
    """One completion request. Implements `serving.api.dialect.Dialect`."""

    prompt_param = "prompt"
    default_tokens = DEFAULT_TOKENS

    def __init__(self, fields: CompletionRequest) -> None:
        if fields.echo and fields.logprobs is not None:
            raise InvalidFieldError(
                "`echo` with `logprobs` is not offered: the prompt's tokens are not scored.", param="echo"
            )
        self.fields = fields
        self.logprobs = fields.logprobs
        self.wanted_tokens = fields.max_tokens
        self._prompts = _prompts_of(fields)
        self.is_constrained = fields.structured_outputs is not None
        refuse_contradictions(fields, ["structured_outputs"] if self.is_constrained else [])

    @property
    def prompt_count(self) -> int:
        """How many prompts there are."""
        return len(self._prompts)

    def asked(self, base: ServedBase) -> Asked | None:
        """What `structured_outputs` asks for."""
        return None if self.fields.structured_outputs is None else asked_by_structure(self.fields.structured_outputs)

    def encode(self, base: ServedBase) -> list[list[int]]:
        """Texts are tokenized; token ids are checked against the vocabulary."""
        encoded = []
        for prompt in self._prompts:
            if isinstance(prompt, str):
                refuse_hopeless(len(prompt), base, param=self.prompt_param)
                encoded.append(base.tokenization.encode(prompt))
            else:
                check_token_ids(prompt, base, param="prompt")
                encoded.append(prompt)
        return encoded

    def opening(self, head: Head, index: int, tokenization: Tokenization) -> Iterable[Document]:
        """The prompt where it is to be echoed."""
        echo = self._echo(index, tokenization)
        return [self._document(head, [self._choice(index, echo, None, None)])] if echo else []

    def chunks(
        self, head: Head, index: int, passage: Passage, finish: Finish | None, tokenization: Tokenization
    ) -> Iterable[Document]:
        """One chunk for each piece."""
        logprobs = None if self.logprobs is None else completion_logprobs(passage.tokens, tokenization)
        yield self._document(head, [self._choice(index, passage.text, logprobs, finish)])

    def closing(self, head: Head, usage: Usage) -> Document:
        """No choices, only the usage."""
        return {**self._document(head, []), "usage": usage.document()}

    def whole(self, head: Head, choices: Sequence[WholeChoice], usage: Usage, tokenization: Tokenization) -> Document:
        """All choices with their texts."""
        documents = []
        for choice in choices:
            text = self._echo(choice.index, tokenization) + choice.passage.text
            logprobs = None if self.logprobs is None else completion_logprobs(choice.passage.tokens, tokenization)
            documents.append(self._choice(choice.index, text, logprobs, choice.finish_reason))
        return {**self._document(head, documents), "usage": usage.document()}

    def _echo(self, index: int, tokenization: Tokenization) -> str:
        if not self.fields.echo:
            return ""
        prompt = self._prompts[index // (self.fields.n or 1)]
        return prompt if isinstance(prompt, str) else tokenization.decode(prompt)

    def _choice(self, index: int, text: str, logprobs: Document | None, finish: Finish | None) -> Document:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _document(self, head: Head, choices: list[Document]) -> Document:
        return {
            "id": f"cmpl-{head.id}",
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.system_fingerprint,
            "choices": choices,
        }


def _prompts_of(fields: CompletionRequest) -> list[Prompt]:
    """The prompts, however they were written: one text, texts, one list of token ids, or lists of them."""
    prompt = fields.prompt
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [[item for item in prompt if isinstance(item, int)]]
    if len(prompt) > MOST_PROMPTS:
        raise InvalidFieldError(f"`prompt` has {len(prompt)} prompts; at most {MOST_PROMPTS}.", param="prompt")
    texts: list[Prompt] = [item for item in prompt if isinstance(item, str)]
    token_lists: list[Prompt] = [item for item in prompt if isinstance(item, list)]
    if len(prompt) not in (len(texts), len(token_lists)):
        raise InvalidFieldError(
            "`prompt` is a text, a list of texts, a list of token ids, or a list of lists of token ids: not a mixture.",
            param="prompt",
        )
    return texts or token_lists
