from __future__ import annotations

import pytest

from tests.serving.byte_base import to_ids
from tests.serving.server import RunningServer
from tests.serving.test_chat import events


def texts(server: RunningServer, prompt: object, **fields: object) -> list[str]:
    response = server.complete(prompt, **fields)
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_every_way_to_write_a_prompt(server: RunningServer) -> None:
    assert texts(server, "!say a") == ["a"]
    assert texts(server, ["!say a", "!say bc"]) == ["a", "bc"]
    assert texts(server, to_ids("!say a")) == ["a"]
    assert texts(server, [to_ids("!say a"), to_ids("!say bc")]) == ["a", "bc"]
    assert texts(server, ["!say a", "!say b"], n=2) == ["a", "a", "b", "b"]


def test_sixteen_tokens_unless_told_otherwise(server: RunningServer) -> None:
    assert texts(server, "abcdefghij") == ["abcdefghijabcdef"]
    assert texts(server, "abc", max_tokens=2) == ["ab"]


def test_usage_counts_each_prompt_once(server: RunningServer) -> None:
    usage = server.complete(["abc", "de"], n=2, max_tokens=3).json()["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


def test_echo(server: RunningServer) -> None:
    assert texts(server, "!say b", echo=True) == ["!say bb"]
    assert texts(server, to_ids("!say b"), echo=True) == ["!say bb"]
    chunks = events(server.complete("!say b", echo=True, stream=True).text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "!say bb"


def test_logprobs(server: RunningServer) -> None:
    logprobs = server.complete("!say abc", logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -9999.0}
    assert server.complete("!say a", logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


def test_a_stream_of_two_prompts(server: RunningServer) -> None:
    chunks = events(server.complete(["!say abc", "!say xyz"], stream=True).text)
    assert chunks.pop() == "[DONE]"
    for index, text in enumerate(("abc", "xyz")):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == text
        assert [choice["finish_reason"] for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "answer"),
    [({"ignore_eos": True, "max_tokens": 2}, "a"), ({"max_tokens": 50}, "a")],
)
def test_the_end_of_text_token_has_no_text(server: RunningServer, fields: dict[str, object], answer: str) -> None:
    assert texts(server, "!say a", **fields) == [answer]
