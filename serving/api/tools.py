"""Which functions an answer may call, must call, and how the calls are told to the client.

It does: read `tools`, `tool_choice` and `parallel_tool_calls`, ask for the grammar that makes calls valid, and write
calls as OpenAI does. It does not: run a function; that is the client's.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from serving.api.asked import Asked, asked_by
from serving.api.conversation import NamedTool, Tool
from serving.api.schemas import ChatRequest
from serving.errors import InvalidFieldError
from serving.tool_calls import ArgumentsPiece, CallBegun, Piece, Said
from serving.tool_syntax import ToolSyntax

Document = dict[str, Any]


class ToolUse:
    """The tools of one chat request. Raises InvalidFieldError for choices that contradict them."""

    def __init__(self, fields: ChatRequest) -> None:
        tools, choice = fields.tools or [], fields.tool_choice
        _check(tools, choice)
        self.is_allowed = bool(tools) and choice != "none"
        self.is_required = choice == "required" or isinstance(choice, NamedTool)
        self.shown: list[Document] = [_shown(tool) for tool in tools] if self.is_allowed else []
        name = choice.function.name if isinstance(choice, NamedTool) else None
        self._callable = [tool["function"] for tool in self.shown if name in (None, tool["function"]["name"])]
        self._is_many = fields.parallel_tool_calls is not False and name is None

    def asked(self, syntax: ToolSyntax, answer: Mapping[str, Any] | None) -> Asked:
        """What makes the calls valid, and what is said instead of them, where that has a schema. Raises
        InvalidFieldError.
        """
        functions, is_many = self._callable, self._is_many
        if answer is not None and not self.is_required:
            schema = answer
            return asked_by(lambda: syntax.json_or_calls_grammar(functions, schema, is_many=is_many), "response_format")
        make = syntax.calls_grammar if self.is_required else syntax.text_or_calls_grammar
        return asked_by(lambda: make(functions, is_many=is_many), "tools")


def delta_of(piece: Piece) -> Document:
    """The delta of a stream's chunk."""
    match piece:
        case Said(text):
            return {"content": text}
        case CallBegun(index, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": new_call_id(), "type": "function", "function": function}]}
        case ArgumentsPiece(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(pieces: Sequence[Piece]) -> Document:
    """A whole answer's message."""
    content = "".join(piece.text for piece in pieces if isinstance(piece, Said))
    calls = [
        {
            "id": new_call_id(),
            "type": "function",
            "function": {"name": begun.name, "arguments": _arguments(pieces, begun)},
        }
        for begun in pieces
        if isinstance(begun, CallBegun)
    ]
    message: Document = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    return message | {"tool_calls": calls} if calls else message


def new_call_id() -> str:
    """An id by which a result names its call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _arguments(pieces: Sequence[Piece], begun: CallBegun) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, ArgumentsPiece) and piece.index == begun.index)


def _shown(tool: Tool) -> Document:
    """A tool as templates know it: without what is null, and without `strict`, which is for us."""
    document: Document = msgspec.to_builtins(tool)
    function = {name: value for name, value in document["function"].items() if value is not None and name != "strict"}
    return {"type": "function", "function": function}


def _check(tools: Sequence[Tool], choice: NamedTool | Literal["none", "auto", "required"] | None) -> None:
    names = [tool.function.name for tool in tools]
    for position, tool in enumerate(tools):
        path = f"tools[{position}].function"
        if tool.function.name in names[:position]:
            raise InvalidFieldError(f"`{path}.name`: there are two functions of this name.", param=f"{path}.name")
        if tool.function.parameters and tool.function.parameters.get("type") != "object":
            raise InvalidFieldError(
                f'`{path}.parameters` is not the schema of an object: it needs `"type": "object"`.',
                param=f"{path}.parameters",
            )
    if choice in ("auto", "required") and not tools:
        raise InvalidFieldError(f"`tool_choice` is {choice}, but there are no `tools`.", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidFieldError("`tool_choice` names a function that is not among `tools`.", param="tool_choice")
