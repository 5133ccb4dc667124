"""Tells a base about functions where its own chat template cannot: in the system turn, in the syntax of Hermes.

It does: turn tools, calls and their results into plain turns. It does not: know templates (`chat_template`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serving.tool_syntax import HERMES

Turn = Mapping[str, Any]

INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def plain_turns(messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The messages without `tools`, `tool_calls` and the role `tool`, which all became text."""
    turns: list[Turn] = []
    for message in messages:
        if message["role"] != "tool":
            turns.append({"role": message["role"], "content": _with_calls(message)})
            continue
        result = f"<tool_response>\n{message['content']}\n</tool_response>"
        if turns and turns[-1].get("is_result"):
            result = f"{turns.pop()['content']}\n{result}"
        turns.append({"role": "user", "content": result, "is_result": True})
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if not tools:
        return turns
    introduction = INTRODUCTION.format(signatures="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{introduction}"}, *turns[1:]]
    return [{"role": "system", "content": introduction}, *turns]


def _with_calls(message: Turn) -> str:
    calls = [
        HERMES.call_text(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
        for call in message.get("tool_calls", ())
    ]
    return "\n".join(([message["content"]] if message["content"] or not calls else []) + calls)
