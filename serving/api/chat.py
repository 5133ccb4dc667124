"""POST /v1/chat/completions: messages in, the assistant's turn out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from serving.api.body import read_body
from serving.api.choices import Finish
from serving.api.dialect import Document, Head, Usage, WholeChoice
from serving.api.generation import generate
from serving.api.limits import refuse_hopeless
from serving.api.logprobs import chat_logprobs
from serving.api.schemas import ChatRequest, Message
from serving.errors import InvalidFieldError
from serving.served_base import ServedBase
from serving.tokenization import Tokenization
from serving.transcript import Passage


@post("/v1/chat/completions", name="chat", status_code=200)
async def chat_completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer a chat, plain or as a stream."""
    return await generate(request, lambda: _read(request))


async def _read(request: Request[Any, Any, Any]) -> ChatDialect:
    return ChatDialect(await read_body(request, ChatRequest))


class ChatDialect:
    """One chat request. Implements `serving.api.dialect.Dialect`."""

    prompt_param = "messages"
    prompt_count = 1
    default_tokens = None

    def __init__(self, fields: ChatRequest) -> None:
        if fields.top_logprobs is not None and not fields.logprobs:
            raise InvalidFieldError("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        if fields.max_tokens is not None and fields.max_completion_tokens is not None:
            raise InvalidFieldError(
                "`max_tokens` is the older name of `max_completion_tokens`: give one of them.", param="max_tokens"
            )
        self.fields = fields
        self.logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
        self.wanted_tokens = fields.max_completion_tokens if fields.max_tokens is None else fields.max_tokens

    def encode(self, base: ServedBase) -> list[list[int]]:
        """The one prompt that the base's template makes of the messages."""
        messages = [_plain(message) for message in self.fields.messages]
        refuse_hopeless(sum(len(message["content"]) for message in messages), base, param=self.prompt_param)
        return [base.tokenization.encode_chat(messages)]

    def opening(self, head: Head, index: int, tokenization: Tokenization) -> Iterable[Document]:
        """The role comes first."""
        return [self._chunk(head, index, {"role": "assistant", "content": ""})]

    def chunks(
        self, head: Head, index: int, passage: Passage, finish: Finish | None, tokenization: Tokenization
    ) -> Iterable[Document]:
        """A chunk with the text, and one with the reason where the choice has ended."""
        if passage.text or passage.tokens:
            logprobs = None if self.logprobs is None else chat_logprobs(passage.tokens, tokenization)
            yield self._chunk(head, index, {"content": passage.text}, logprobs=logprobs)
        if finish is not None:
            yield self._chunk(head, index, {}, finish=finish)

    def closing(self, head: Head, usage: Usage) -> Document:
        """No choices, only the usage."""
        return {**_head(head, "chat.completion.chunk"), "choices": [], "usage": usage.document()}

    def whole(self, head: Head, choices: Sequence[WholeChoice], usage: Usage, tokenization: Tokenization) -> Document:
        """All choices with their messages."""
        documents = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.passage.text, "refusal": None},
                "logprobs": None if self.logprobs is None else chat_logprobs(choice.passage.tokens, tokenization),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ]
        return {**_head(head, "chat.completion"), "choices": documents, "usage": usage.document()}

    def _chunk(
        self,
        head: Head,
        index: int,
        delta: Document,
        *,
        logprobs: Document | None = None,
        finish: Finish | None = None,
    ) -> Document:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**_head(head, "chat.completion.chunk"), "choices": [choice]}


def _head(head: Head, kind: str) -> Document:
    return {
        "id": f"chatcmpl-{head.id}",
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
    }


def _plain(message: Message) -> dict[str, str]:
    """A message as templates know it: `developer` is the newer word for `system`, parts are joined by line breaks."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    return {"role": role, "content": "\n".join(part.text for part in message.content)}
