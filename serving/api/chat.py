"""POST /v1/chat/completions: messages in, the assistant's turn out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from serving.api.asked import Asked, asked_by_format, asked_by_structure, refuse_contradictions, schema_of
from serving.api.body import read_body
from serving.api.choices import Finish
from serving.api.dialect import Document, Head, Usage, WholeChoice
from serving.api.generation import generate
from serving.api.limits import refuse_hopeless
from serving.api.logprobs import chat_logprobs
from serving.api.schemas import ChatRequest
from serving.api.tools import ToolUse, delta_of, message_of
from serving.api.turns import characters_of, turns_of
from serving.errors import InvalidFieldError
from serving.served_base import ServedBase
from serving.tokenization import Tokenization
from serving.tool_calls import Said, ToolCallReader
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
        self._tools = ToolUse(fields)
        self._readers: dict[int, ToolCallReader] = {}
        has_format = schema_of(fields.response_format) is not None
        followed = {
            "tools": self._tools.is_allowed,
            "response_format": has_format and not self._tools.is_allowed,
            "structured_outputs": fields.structured_outputs is not None,
        }
        refuse_contradictions(fields, [name for name, is_asked in followed.items() if is_asked])
        self.is_constrained = any(followed.values())

    def asked(self, base: ServedBase) -> Asked | None:
        """What the one field that asks for something asks for."""
        if self._tools.is_allowed:
            return self._tools.asked(base.tokenization.tool_syntax, schema_of(self.fields.response_format))
        if self.fields.structured_outputs is not None:
            return asked_by_structure(self.fields.structured_outputs)
        return asked_by_format(self.fields.response_format)

    def encode(self, base: ServedBase) -> list[list[int]]:
        """The one prompt that the base's template makes of the messages."""
        turns = turns_of(self.fields.messages)
        refuse_hopeless(characters_of(turns), base, param=self.prompt_param)
        return [base.tokenization.encode_chat(turns, self._tools.shown)]

    def opening(self, head: Head, index: int, tokenization: Tokenization) -> Iterable[Document]:
        """The role comes first."""
        return [self._chunk(head, index, {"role": "assistant", "content": None if self._tools.is_required else ""})]

    def chunks(
        self, head: Head, index: int, passage: Passage, finish: Finish | None, tokenization: Tokenization
    ) -> Iterable[Document]:
        """Chunks with the text and the calls, and one with the reason where the choice has ended."""
        deltas = self._deltas(index, passage.text, tokenization, is_over=finish is not None)
        if passage.tokens and not deltas:
            deltas = [{}]  # the tokens of text that is held back
        logprobs = None if self.logprobs is None else chat_logprobs(passage.tokens, tokenization)
        for position, delta in enumerate(deltas):
            yield self._chunk(head, index, delta, logprobs=None if position else logprobs)
        if finish is not None:
            yield self._chunk(head, index, {}, finish=_reason(finish, self._readers.pop(index, None)))

    def closing(self, head: Head, usage: Usage) -> Document:
        """No choices, only the usage."""
        return {**_head(head, "chat.completion.chunk"), "choices": [], "usage": usage.document()}

    def whole(self, head: Head, choices: Sequence[WholeChoice], usage: Usage, tokenization: Tokenization) -> Document:
        """All choices with their messages."""
        documents = []
        for choice in choices:
            reader = ToolCallReader(tokenization.tool_syntax) if self._tools.is_allowed else None
            pieces = [*reader.add(choice.passage.text), *reader.finish()] if reader else [Said(choice.passage.text)]
            documents.append(
                {
                    "index": choice.index,
                    "message": message_of(pieces),
                    "logprobs": None if self.logprobs is None else chat_logprobs(choice.passage.tokens, tokenization),
                    "finish_reason": _reason(choice.finish_reason, reader),
                }
            )
        return {**_head(head, "chat.completion"), "choices": documents, "usage": usage.document()}

    def _deltas(self, index: int, text: str, tokenization: Tokenization, *, is_over: bool) -> list[Document]:
        if not self._tools.is_allowed:
            return [{"content": text}] if text else []
        reader = self._readers.setdefault(index, ToolCallReader(tokenization.tool_syntax))
        return [delta_of(piece) for piece in (*reader.add(text), *(reader.finish() if is_over else ()))]

    def _chunk(
        self,
        head: Head,
        index: int,
        delta: Document,
        *,
        logprobs: Document | None = None,
        finish: str | None = None,
    ) -> Document:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**_head(head, "chat.completion.chunk"), "choices": [choice]}


def _reason(finish: Finish, reader: ToolCallReader | None) -> str:
    """An answer that is whole and calls something ends with `tool_calls`."""
    return "tool_calls" if finish == "stop" and reader is not None and reader.has_only_complete_calls else finish


def _head(head: Head, kind: str) -> Document:
    return {
        "id": f"chatcmpl-{head.id}",
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
    }
