"""What the generation routes accept, field by field, each with its bounds; everything else is refused by name.

It does: give msgspec the types. It does not: check what needs the base or other fields (`sampling`, `limits`).
The names and meanings are OpenAI's; the fields below the line in `SamplingFields` are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.api.conversation import MOST_CHARACTERS, MOST_TOOLS, Message, NamedTool, Text, Tool

MOST_TOKENS = 1_048_576

Model = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenCount = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
AlternativeCount = Annotated[int, Meta(ge=0, le=20)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MOST_TOKENS)]
LogitBias = Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)]
MOST_PROMPTS = 64
"""Prompts of one completion request."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Plain text."""


class JsonObjectFormat(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"
):
    """Any JSON object."""


class DescribedSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema; without one, any object. It is always followed: `name`, `description`, `strict` change nothing."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
    schema: dict[str, Any] | None = None
    description: Annotated[str, Meta(max_length=16_384)] | None = None
    strict: bool | None = None


class JsonSchemaFormat(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    """JSON of one schema."""

    json_schema: DescribedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the answer follows: one of these. The names are vLLM's."""

    json: dict[str, Any] | Annotated[str, Meta(max_length=MOST_CHARACTERS)] | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=MOST_CHARACTERS)] | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=MOST_CHARACTERS)] | None = None


MOST_ADAPTERS = 8


class WeightedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One adapter of an ensemble; its weight is 1 where it has none."""

    model: Model
    weight: Annotated[float, Meta(ge=-10.0, le=10.0)] | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and plain completions share."""

    model: Model
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    # ---- beyond OpenAI
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    speculative_ngram: Annotated[int, Meta(ge=0, le=16)] | None = None
    # ---- ours
    adapters: Annotated[list[WeightedModel], Meta(min_length=1, max_length=MOST_ADAPTERS)] | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: AlternativeCount | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. `prompt` is a text, texts, token ids, or lists of token ids."""

    prompt: Text | Annotated[list[Text | TokenId | TokenIds], Meta(min_length=1, max_length=MOST_TOKENS)]
    logprobs: AlternativeCount | None = None
    echo: bool | None = None
