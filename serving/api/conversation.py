"""What a chat consists of, field by field with its bounds: messages by their role, functions, and calls of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MOST_CHARACTERS = 4_194_304
MOST_TOOLS = 128

Text = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Meta(min_length=1, max_length=64)]


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`arguments` are a JSON object, as text. The openai package sends what it made of them back, too."""

    name: FunctionName
    arguments: Text
    parsed_arguments: Any = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that the assistant made. `index` is what a stream's pieces carry; it says nothing here."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: Annotated[int, Meta(ge=0, le=MOST_TOOLS)] | None = None


class SystemMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="system"
):
    """What holds for the whole chat."""

    content: Content


class DeveloperMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="developer"
):
    """The newer word for `system`."""

    content: Content


class UserMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="user"):
    """A turn of the user."""

    content: Content


class AssistantMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"
):
    """A turn of the assistant: text, calls, or both. The fields that say nothing here, or can only be null, are those
    that the openai package sends back with an answer.
    """

    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MOST_TOOLS)] | None = None
    refusal: None = None
    audio: None = None
    annotations: None = None
    function_call: None = None
    parsed: Any = None


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="tool"):
    """What a call came to. `tool_call_id` names the call of an assistant's turn before it."""

    content: Content
    tool_call_id: CallId


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`parameters` is the JSON schema of an object; without it the function has none. Calls always follow it, whether
    `strict` or not.
    """

    name: FunctionName
    description: Annotated[str, Meta(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: FunctionName


class NamedTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one function that is to be called."""

    type: Literal["function"]
    function: NamedFunction
