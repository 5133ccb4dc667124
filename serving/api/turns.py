"""From a request's messages to the turns that a chat template knows.

It does: join parts, give calls their arguments as objects, and check that each result belongs to a call.
It does not: render (`serving.chat_template`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serving.api.conversation import (
    AssistantMessage,
    Content,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from serving.errors import InvalidFieldError

DEEPEST_ARGUMENTS = 64

Turn = dict[str, Any]


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The turns: `developer` is `system`, parts are joined by line breaks. Raises InvalidFieldError."""
    names: dict[str, str] = {}
    turns: list[Turn] = []
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        if isinstance(message, AssistantMessage):
            turns.append(_assistant(message, param))
            names |= {call.id: call.function.name for call in message.tool_calls or ()}
        elif isinstance(message, ToolMessage):
            turns.append(_result(message, names, param))
        else:
            role = "system" if isinstance(message, (SystemMessage, DeveloperMessage)) else "user"
            turns.append({"role": role, "content": _text(message.content)})
    return turns


def characters_of(turns: Sequence[Turn]) -> int:
    """How much text there is, roughly, and never more than there is."""
    return sum(len(turn["content"]) for turn in turns)


def _assistant(message: AssistantMessage, param: str) -> Turn:
    calls = [_call(call, f"{param}.tool_calls[{position}]") for position, call in enumerate(message.tool_calls or ())]
    if message.content is None and not calls:
        raise InvalidFieldError(
            f"`{param}.content` is required where there are no `tool_calls`.", param=f"{param}.content"
        )
    turn: Turn = {"role": "assistant", "content": "" if message.content is None else _text(message.content)}
    return turn | {"tool_calls": calls} if calls else turn


def _call(call: ToolCall, param: str) -> Turn:
    """Templates write the arguments as JSON themselves, so they want the object."""
    try:
        arguments = json.loads(call.function.arguments or "{}", parse_constant=_no_json)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or _is_deeper(arguments, DEEPEST_ARGUMENTS):
        path = f"{param}.function.arguments"
        raise InvalidFieldError(f"`{path}` is not a JSON object, or nested too deeply.", param=path)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _no_json(constant: str) -> None:
    """NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(constant)


def _result(message: ToolMessage, names: dict[str, str], param: str) -> Turn:
    if message.tool_call_id not in names:
        path = f"{param}.tool_call_id"
        raise InvalidFieldError(f"`{path}`: no message before it has a call with this id.", param=path)
    return {
        "role": "tool",
        "content": _text(message.content),
        "tool_call_id": message.tool_call_id,
        "name": names[message.tool_call_id],
    }


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)
