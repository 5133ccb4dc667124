"""Constrained answers and tools of the real server with the embedded base, through the stock `openai` client.

The base is too small to say anything sensible; what it says is valid all the same, every time.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field, TypeAdapter

from tests.serving.server import RunningServer, running_server


class Address(BaseModel):
    street: str = Field(max_length=12)
    number: int = Field(ge=1, le=999)
    zone: Literal["north", "south"] | None


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=10)
    height: float = Field(ge=0, le=3)
    addresses: list[Address] = Field(max_length=2)


class Leaf(BaseModel):
    value: bool


class Tree(BaseModel):
    children: list[Tree | Leaf] = Field(max_length=2)
    kind: Literal["a", "b", "c"]


ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": [1, 2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
PING: dict[str, Any] = {"type": "function", "function": {"name": "ping"}}
ASK: Any = [{"role": "user", "content": "Please add 2 and 3."}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    engine = [sys.executable, "-m", "serving.engine"]
    folder = tmp_path_factory.mktemp("constrained")
    with running_server(folder, engine=engine, max_running=16, threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.parametrize("model", [Person, Address, Tree])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_each_answer_is_of_its_schema(client: openai.OpenAI, model: type[BaseModel], temperature: float) -> None:
    described: Any = {"name": "answer", "strict": True, "schema": model.model_json_schema()}
    completion = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Describe something."}],
        response_format={"type": "json_schema", "json_schema": described},
        temperature=temperature,
        seed=7,
        n=3,
        max_tokens=120,
    )
    finished = [choice for choice in completion.choices if choice.finish_reason == "stop"]
    assert finished or model is Tree or temperature == 0  # a tree may grow for ever, and a greedy one does
    for choice in finished:
        assert choice.message.content is not None
        model.model_validate_json(choice.message.content)
    for choice in completion.choices:
        if choice.finish_reason == "length":  # cut, not wrong
            assert TypeAdapter(Any).validate_python(_repaired(choice.message.content or "")) is not None


def _repaired(text: str) -> Any:
    """The value of a text that is the beginning of JSON."""
    from pydantic_core import from_json

    return from_json(text, allow_partial="trailing-strings")


def test_parse_gives_the_model(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="base",
        messages=[{"role": "user", "content": "Where?"}],
        response_format=Address,
        seed=3,
        temperature=1.0,
        max_tokens=200,
    )
    parsed = completion.choices[0].message.parsed
    assert parsed is not None
    assert 1 <= parsed.number <= 999


def test_streams_a_schema(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="base", messages=ASK, response_format=Address, seed=4, temperature=1.0, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert completion.choices[0].message.parsed is not None
    assert completion.choices[0].finish_reason == "stop"


def test_a_json_object(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base", messages=ASK, response_format={"type": "json_object"}, seed=1, temperature=0.7, max_tokens=300
    )
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(completion.choices[0].message.content or ""), dict)
    assert (completion.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": r"[a-z]{2,4}@[a-z]{2,4}\.com"}, r"[a-z]{2,4}@[a-z]{2,4}\.com"),
        ({"choice": ["yes", "no", "perhaps"]}, "yes|no|perhaps"),
        ({"grammar": 'root ::= "SELECT " [a-z]+ " FROM " ("users" | "orders")'}, "SELECT [a-z]+ FROM (users|orders)"),
        ({"json": {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}}, r"\[\s*1\s*,\s*1\s*\]"),
        ({"json": json.dumps({"enum": ["x", None]})}, '"x"|null'),
    ],
)
def test_structured_outputs_on_both_routes(client: openai.OpenAI, asked: dict[str, Any], pattern: str) -> None:
    extra = {"extra_body": {"structured_outputs": asked}, "max_tokens": 60, "temperature": 1.0}
    bias = {str(token): -2 for token in range(300, 320)}  # with a grammar, a bias acts among what is allowed
    for seed in range(3):
        texts = [
            client.completions.create(model="base", prompt="x =", seed=seed, **extra).choices[0].text,
            client.chat.completions.create(model="base", messages=ASK, seed=seed, logit_bias=bias, **extra)
            .choices[0]
            .message.content,
        ]
        for text in texts:
            assert re.fullmatch(pattern, (text or "").replace("\n", " ")) or len(text or "") > 40, text


def test_a_required_call_is_valid(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base", messages=ASK, tools=[ADD, PING], tool_choice="required", parallel_tool_calls=False, n=4, seed=1,
        max_tokens=300,
    )  # fmt: skip
    for choice in completion.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or []
        arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
        assert _is_valid(call.function.name, arguments)  # type: ignore[union-attr]


def _is_valid(name: str, arguments: Any) -> bool:
    if name == "ping":
        return bool(arguments == {})
    return name == "add" and set(arguments) == {"a", "b"} and arguments["a"] <= 99 and arguments["b"] in (1, 2)


def test_a_round_trip_with_the_clients_own_objects(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "add"}}
    first = client.chat.completions.create(model="base", messages=ASK, tools=[ADD], tool_choice=named, seed=2)
    (call,) = first.choices[0].message.tool_calls or []
    assert call.id.startswith("call_")
    answered = [*ASK, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    second = client.chat.completions.create(model="base", messages=answered, tools=[ADD], max_tokens=20, seed=2)
    assert second.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


class Add(BaseModel):
    """Adds two numbers."""

    a: int = Field(ge=0, le=9)
    b: int = Field(ge=0, le=9)


def test_tools_made_of_pydantic_models(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(Add)]
    completion = client.chat.completions.parse(
        model="base", messages=ASK, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=5
    )
    (call,) = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Add)
    again: Any = [*ASK, completion.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    assert client.chat.completions.create(model="base", messages=again, tools=tools, max_tokens=4).choices


def test_a_schema_and_tools_in_one_request(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="base", messages=ASK, tools=[openai.pydantic_function_tool(Add)], response_format=Address, n=3, seed=6,
        max_tokens=200,
    )  # fmt: skip
    for choice in completion.choices:
        if choice.finish_reason == "stop":
            assert choice.message.parsed is not None
        else:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None


def test_calls_are_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="base", messages=ASK, tools=[ADD, PING], tool_choice="required", parallel_tool_calls=False, seed=3,
        temperature=1.0,
    ) as stream:  # fmt: skip
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        completion = stream.get_final_completion()
    (call,) = completion.choices[0].message.tool_calls or []
    assert completion.choices[0].finish_reason == "tool_calls"
    assert "".join(piece.arguments_delta for piece in pieces) == call.function.arguments
    assert _is_valid(call.function.name, json.loads(call.function.arguments))


def test_without_a_call_auto_is_plain_text(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="base", messages=ASK, tools=[PING], max_tokens=12, seed=1)
    message = completion.choices[0].message
    assert message.content or message.tool_calls


def test_hostile_grammars_hold_up_no_neighbour(live: RunningServer, client: openai.OpenAI) -> None:
    """They are refused, or fail alone; a stream beside them goes on without a long gap, and is what it was alone."""
    hostile: list[dict[str, Any]] = [
        {"regex": "(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})"},
        {"grammar": "start: A\nA: " + " & ".join(f"/(?s:.*)a{{{i}}}(?s:.*)/" for i in range(1, 30))},
        {"grammar": 'start: a+\na: b | c | "x"\nb: a a | "x"\nc: a a a | "x"'},
        {"regex": "(.|\n)*[a-m](.|\n){15}[a-m](.|\n){15}x"},
        {"json": {"$ref": "#"}},
        {"json": {"enum": [f"v{i}" for i in range(2000)]}},
    ]
    body = {"model": "base", "prompt": "def f(", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    alone = client.completions.create(model="base", prompt="def f(", max_tokens=200, temperature=0,
                                      extra_body={"ignore_eos": True}).choices[0].text  # fmt: skip
    statuses: list[int] = []

    def attack(asked: dict[str, Any]) -> None:
        fields = {"structured_outputs": asked, "ignore_eos": False, "max_tokens": 100}
        response = httpx.post(f"{live.url}/v1/completions", json=body | fields, timeout=250)
        statuses.append(response.status_code)

    threads = [threading.Thread(target=attack, args=(asked,)) for asked in hostile]
    for thread in threads:
        thread.start()
    beside = client.completions.create(model="base", prompt="def f(", max_tokens=200, temperature=0,
                                       extra_body={"ignore_eos": True}).choices[0].text  # fmt: skip
    for thread in threads:
        thread.join()
    assert beside == alone
    assert len(statuses) == len(hostile)
    assert set(statuses) <= {200, 400}
    assert statuses.count(400) >= 3
    assert live.metric("loraplex_engine_starts_total") == 1
    assert live.metric("loraplex_sequences_inside") == 0
