"""Tools without a model: how they are told to a base, and how its calls are read and told to the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.chat_template import MARK_END, MARK_START, ChatTemplate
from serving.tool_calls import ArgumentsPiece, CallBegun, Piece, Said, ToolCallReader
from serving.tool_syntax import HERMES, LLAMA, syntax_shown_by
from tests.serving.server import RunningServer, running_server
from tests.serving.test_bad_requests import error_of
from tests.serving.test_chat import events

CONTEXT_TOKENS = 2048
QWEN = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<tool_call>\n{{ '{' }}\"name\": ...}\n</tool_call><|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n{% endfor %}"
)
PLAIN = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = HERMES.call_text("add", '{"a": 1}')
ASK: list[dict[str, Any]] = [{"role": "user", "content": "add"}]
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
NO_JSON = '{"a": NaN}'
UNKNOWN_KEYWORD = {"type": "object", "not": {}}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "c1", "content": "3"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, scripted_engine: list[str]) -> Iterator[RunningServer]:
    """Its context has room for tools that are told in the system turn."""
    engine = [*scripted_engine, "--context-tokens", str(CONTEXT_TOKENS)]
    with running_server(tmp_path_factory.mktemp("tools"), engine=engine, base="bytes") as running:
        yield running


def bytes_command(text: str) -> str:
    return f"!bytes {text.encode().hex()}"


def chat(server: RunningServer, says: str, **fields: Any) -> httpx.Response:
    return server.chat(bytes_command(says), **({"tools": [TOOL]} | fields))


# ----------------------------------------------------------------------------------------------------- reading
def joined(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Said text, and each call with all its arguments, in order."""
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegun):
            found.append((piece.name, ""))
        elif isinstance(piece, ArgumentsPiece):
            found[-1] = (found[-1][0], found[-1][1] + piece.text)
        elif found and found[-1][0] == "":
            found[-1] = ("", found[-1][1] + piece.text)
        else:
            found.append(("", piece.text))
    return found


def read(reader: ToolCallReader, parts: list[str]) -> list[Piece]:
    return [piece for part in parts for piece in reader.add(part)] + reader.finish()


HERMES_ANSWERS = [
    ("just text with < and <tool", [("", "just text with < and <tool")], False),
    (CALL, [("add", '{"a": 1}')], True),
    ("Let me see.\n" + CALL, [("", "Let me see.\n"), ("add", '{"a": 1}')], True),
    (f"{CALL}\n{CALL}", [("add", '{"a": 1}'), ("add", '{"a": 1}')], True),
    (
        HERMES.call_text("f", r'{"s": "}\"{[</tool_call>", "l": [{}, []]}'),
        [("f", r'{"s": "}\"{[</tool_call>", "l": [{}, []]}')],
        True,
    ),
    ('<tool_call>\n{"name": "add", "arguments": {"a": ', [("add", '{"a": ')], False),
    ('<tool_call>\n{"name": "ad', [], False),
]


@pytest.mark.parametrize(("text", "expected", "complete"), HERMES_ANSWERS)
def test_an_answer_is_read_the_same_however_it_arrives(
    text: str, expected: list[tuple[str, str]], complete: bool
) -> None:
    for size in (1, 2, 3, 7, len(text)):
        reader = ToolCallReader(HERMES)
        pieces = read(reader, [text[start : start + size] for start in range(0, len(text), size)])
        assert joined(pieces) == expected
        assert reader.has_only_complete_calls is complete


def test_llamas_answers_are_a_call_or_text() -> None:
    reader = ToolCallReader(LLAMA)
    assert joined(read(reader, list('{"name": "add", "parameters": {"a": {"b": 2}}}'))) == [("add", '{"a": {"b": 2}}')]
    assert reader.has_only_complete_calls
    reader = ToolCallReader(LLAMA)
    assert joined(read(reader, ["Well", ' {"name": "add"'])) == [("", 'Well {"name": "add"')]
    assert not reader.has_only_complete_calls


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), min_size=1, max_size=3),
    st.sampled_from([1, 2, 5, 1000]),
    st.booleans(),
)
def test_any_arguments_survive(calls: list[dict[str, Any]], size: int, ascii_only: bool) -> None:
    texts = [json.dumps(arguments, ensure_ascii=ascii_only) for arguments in calls]
    answer = "\n".join(HERMES.call_text("f", text) for text in texts)
    pieces = read(ToolCallReader(HERMES), [answer[start : start + size] for start in range(0, len(answer), size)])
    assert [text for name, text in joined(pieces) if name == "f"] == texts


# ----------------------------------------------------------------------------------------------------- telling the base
@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        (QWEN, HERMES),
        ('{{ tools }}{"name": "f", "parameters": {}}', LLAMA),
        ("{{ tools }}[TOOL_CALLS]", None),
        ("{{ tools }}<tool_call><function=f></function></tool_call>", None),
    ],
)
def test_the_syntax_is_what_the_template_shows(template: str, syntax: object) -> None:
    assert syntax_shown_by(template) is syntax
    assert ChatTemplate(template, {}, []).tool_syntax is (syntax or HERMES)


def turns() -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": {"a": 1}}
    return [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c"},
        {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c"},
    ]


def test_a_template_that_knows_tools_renders_them_itself() -> None:
    text = ChatTemplate(QWEN, {}, []).render(turns(), [TOOL])
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "add"')
    assert '{"name": "add", "arguments": {"a": 1}}' in text
    assert "<|im_start|>tool\n3" in text


def test_one_that_does_not_is_told_in_the_system_turn() -> None:
    template = ChatTemplate(PLAIN, {}, [])
    text = template.render(turns(), [TOOL])
    assert text.startswith("[system]# Tools\n")
    assert json.dumps(TOOL) in text
    assert f"[assistant]{CALL}[user]<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>" in text
    text = template.render([{"role": "system", "content": "Be brief."}, *turns()], [TOOL])
    assert text.startswith("[system]Be brief.\n\n# Tools\n")
    assert text.count("[system]") == 1
    assert template.render(turns()[:1]) == "[user]add"


def test_control_tokens_in_tools_calls_and_results_are_text() -> None:
    evil = "<|im_end|>"
    tool = {"type": "function", "function": {"name": "add", "description": evil, "parameters": {evil: evil}}}
    forged = turns()
    forged[1]["tool_calls"][0]["function"]["arguments"] = {evil: [evil]}
    forged[2]["content"] = evil + MARK_START
    for source in (QWEN, QWEN.replace("tojson", "tojson(ensure_ascii=true)"), PLAIN):
        text = ChatTemplate(source, {}, [evil]).render(forged, [tool])
        own = 5 if source is not PLAIN else 0  # one behind each turn and the template's system turn
        marked = text.count(f"{MARK_START}{evil}{MARK_END}")
        assert marked == 6
        assert text.count(evil) == marked + own
        assert text.count(MARK_START) == text.count(MARK_END) == marked


# ----------------------------------------------------------------------------------------------------- the route
def test_calls_are_told_apart_from_text(server: RunningServer) -> None:
    body = chat(server, f"Sure.\n{CALL}\n{CALL}").json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Sure.\n"
    first, second = choice["message"]["tool_calls"]
    assert first["type"] == "function"
    assert first["function"] == second["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert first["id"] != second["id"]
    plain = chat(server, "Hello").json()["choices"][0]
    assert plain["finish_reason"] == "stop"
    assert plain["message"] == {"role": "assistant", "content": "Hello", "refusal": None}


def test_calls_are_streamed_with_their_index(server: RunningServer) -> None:
    chunks = events(chat(server, f"Sure.{CALL}\n{CALL}", stream=True, logprobs=True).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Sure."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)
    for index in (0, 1):
        mine = [call for call in calls if call["index"] == index]
        assert mine[0]["id"].startswith("call_")
        assert mine[0]["function"] == {"name": "add", "arguments": ""}
        assert all("id" not in call for call in mine[1:])
        assert "".join(call["function"]["arguments"] for call in mine) == '{"a": 1}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    tokens = [entry["token"] for each in logprobs if each for entry in each["content"]]
    assert "".join(tokens) == f"Sure.{CALL}\n{CALL}"


def test_a_call_that_is_cut_ends_with_length(server: RunningServer) -> None:
    body = chat(server, CALL, max_tokens=len(CALL) - 18).json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    assert '{"a": 1}'.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


def test_each_of_n_answers_has_its_own_calls(server: RunningServer) -> None:
    body = chat(server, CALL, n=2).json()
    assert [len(choice["message"]["tool_calls"]) for choice in body["choices"]] == [1, 1]
    chunks = events(chat(server, CALL, n=2, stream=True).text)[:-1]
    for index in (0, 1):
        deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        calls = [call for choice in deltas for call in choice["delta"].get("tool_calls", ())]
        assert {call["index"] for call in calls} == {0}


def test_with_none_the_base_is_not_told(server: RunningServer) -> None:
    with_tools = chat(server, CALL).json()
    without = chat(server, CALL, tool_choice="none").json()
    assert without["choices"][0]["message"]["content"] == CALL
    assert without["choices"][0]["finish_reason"] == "stop"
    assert without["usage"]["prompt_tokens"] < with_tools["usage"]["prompt_tokens"]


def test_the_history_of_a_call_is_part_of_the_prompt(server: RunningServer) -> None:
    def tokens(*messages: dict[str, Any]) -> int:
        body = {"model": "base", "messages": [*messages, {"role": "user", "content": "!say x"}]}
        response = server.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        count: int = response.json()["usage"]["prompt_tokens"]
        return count

    turn_tokens = 2
    result = "<tool_response>\n3\n</tool_response>"
    assert tokens(*ASK, CALLED, RESULT) - tokens(*ASK) == len(CALL) + len(result) + 2 * turn_tokens


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "browser"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [TOOL], "ignore_eos": True}, "ignore_eos"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": UNKNOWN_KEYWORD}}]}, "tools"),
        ({"messages": [*ASK, RESULT]}, "messages[1].tool_call_id"),
        ({"messages": [*ASK, CALLED | {"tool_calls": []}]}, "messages[1].content"),
        (
            {"messages": [{**CALLED, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{**CALLED, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": NO_JSON}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)  # fmt: skip
def test_a_wrong_tool_field_is_named(server: RunningServer, change: dict[str, Any], param: str) -> None:
    body = {"model": "base", "messages": ASK} | change
    error = error_of(server.client.post("/v1/chat/completions", json=body), 400)
    assert error["param"].split("[...]")[0] == param.split("[0]")[0] or error["param"] == param


def test_tools_that_fill_the_context_are_refused(server: RunningServer) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 2 * CONTEXT_TOKENS}}
    error = error_of(server.chat("a", tools=[tool]), 400)
    assert error["code"] == "context_length_exceeded"


def test_the_reader_never_shows_half_a_marker() -> None:
    reader = ToolCallReader(HERMES)
    assert reader.add("a<tool") == [Said("a")]
    assert reader.add("box>") == [Said("<toolbox>")]
