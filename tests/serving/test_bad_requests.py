from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serving.byte_base import CONTEXT_TOKENS, VOCABULARY, to_ids
from tests.serving.conftest import Stocked
from tests.serving.server import RunningServer, wait_until

CHAT = {"model": "base", "messages": [{"role": "user", "content": "!say a"}]}
TEXT = {"model": "base", "prompt": "!say a"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", b'{"model":"\xff"}', b'{"a":' * 50_000, b'{"model":"\\ud800"}', b"null", b"[]"],
)
def test_a_body_that_is_no_json_object(server: RunningServer, route: str, body: bytes) -> None:
    error = error_of(server.client.post(route, content=body), 400)
    assert error["code"] in ("invalid_json", "invalid_field")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 100_000_000}, "n"),
        ({"seed": -1}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop[...]"),
        ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"user": "u" * 257}, "user"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"tools": []}, "tools"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"unknown": "field"}, "unknown"),
    ],
)
@pytest.mark.parametrize(("route", "valid"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_a_wrong_field_is_named(
    server: RunningServer, route: str, valid: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    error = error_of(server.client.post(route, json=valid | change), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].split("[")[0] == param.split("[")[0]
    assert param.split("[")[0].split(".")[-1] in error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_wrong_chat_field_is_named(server: RunningServer, change: dict[str, Any], param: str) -> None:
    error = error_of(server.client.post("/v1/chat/completions", json=CHAT | change), 400)
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "invalid_field"),
        ([], "invalid_field"),
        ([[]], "invalid_field"),
        ([1, "a"], "invalid_field"),
        ([[1], "a"], "invalid_field"),
        ([-1], "invalid_field"),
        ([VOCABULARY], "invalid_field"),
        (["a"] * 65, "invalid_field"),
        (None, "invalid_field"),
        ({"a": 1}, "invalid_field"),
        ("x" * CONTEXT_TOKENS, "context_length_exceeded"),
        (to_ids("x") * (CONTEXT_TOKENS + 5), "context_length_exceeded"),
    ],
)
def test_a_wrong_prompt(server: RunningServer, prompt: Any, code: str) -> None:
    error = error_of(server.complete(prompt), 400)
    assert error["code"] == code
    assert error["param"].startswith("prompt")


def test_too_long_for_the_context_names_the_numbers(server: RunningServer) -> None:
    error = error_of(server.complete("x" * 500, max_tokens=13), 400)
    assert error["code"] == "context_length_exceeded"
    assert [number in error["message"] for number in ("512", "513", "500", "13")] == [True] * 4
    assert server.complete("x" * 500, max_tokens=12).status_code == 200
    error = error_of(server.chat("x" * 600), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


def test_a_text_far_beyond_the_context_is_not_even_tokenized(server: RunningServer) -> None:
    for response in (server.complete("x" * 3_000_000), server.chat("x" * 3_000_000)):
        error = error_of(response, 400)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in ("prompt", "messages")


def test_a_required_field_is_named(server: RunningServer) -> None:
    error = error_of(server.client.post("/v1/completions", json={"model": "base"}), 400)
    assert error["param"] == "prompt"
    assert "required" in error["message"]


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4",
        "acme/nothing",
        "acme/sql@9",
        "acme/sql@dev",
        "../../etc",
        "a/b/c",
        "ünï",
        "a\x00b",
        "acme/sql@" + "9" * 200,
    ],
)
def test_an_unknown_model(server: RunningServer, name: str) -> None:
    error = error_of(server.chat("x", model=name), 404)
    assert error == {
        "message": f"The model `{name}` does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_an_adapter_of_another_base_names_both_fingerprints(server: RunningServer, stocked: Stocked) -> None:
    error = error_of(server.chat("x", model="acme/foreign"), 422)
    assert error["code"] == "adapter_base_mismatch"
    assert stocked.foreign.base_fingerprint in error["message"]
    assert stocked.first.base_fingerprint in error["message"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("adapter_rejected", 422, "adapter_rejected"),
        ("invalid_request", 400, "invalid_request"),
        ("out_of_memory", 503, "out_of_memory"),
        ("internal", 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_engine_has_its_status(
    server: RunningServer, fault: str, status: int, code: str, stream: bool
) -> None:
    error = error_of(server.chat(f"!fail {fault}", stream=stream), status)
    assert error["code"] == code


def test_unknown_routes_and_methods(server: RunningServer) -> None:
    assert error_of(server.client.get("/v1/nothing"), 404)["code"] == "unknown_route"
    response = server.client.get("/v1/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "OPTIONS, POST"
    assert server.client.post("/v1/models/a/b").headers["allow"] == "GET, OPTIONS"


def test_a_body_that_is_too_large(server: RunningServer) -> None:
    error = error_of(server.complete("x" * 5_000_000), 413)
    assert error["code"] == "body_too_large"


def test_the_request_id_is_the_clients_if_well_formed(server: RunningServer) -> None:
    def request_id(headers: dict[str, str], path: str = "/livez") -> str:
        return server.client.get(path, headers=headers).headers["x-request-id"]

    assert request_id({"x-request-id": "Abc-1_2"}) == "Abc-1_2"
    assert request_id({"x-request-id": "Abc-1_2"}, "/nowhere") == "Abc-1_2"
    for bad in ("a b", "x" * 65, "a\u00e9", "<script>"):
        assert request_id({"x-request-id": bad.encode("latin-1")}).startswith("req-")  # type: ignore[dict-item]
    assert request_id({}) != request_id({})


def test_nothing_is_left_behind_by_bad_requests(server: RunningServer) -> None:
    wait_until(lambda: server.metric("loraplex_sequences_inside") == 0)
    assert "Traceback" not in server.log
