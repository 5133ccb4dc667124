"""The real server with the real engine and the embedded base, used by the stock `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tokenizers import Tokenizer

import registry
from registry import Principal, Version
from tests.serving.live_adapters import write_adapter
from tests.serving.server import RunningServer, running_server, wait_until

ADAPTERS = 5
PROMPTS = ["def parse(", "Hello", "import os\n", "class Node:", "for i in "]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two adapter slots for five adapters, so that they are swapped all the time."""
    folder = tmp_path_factory.mktemp("live")
    engine = [sys.executable, "-m", "serving.engine"]
    with running_server(folder, engine=engine, adapter_slots=2, max_running=8, threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def adapters(live: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """Published while the server runs: it has registered its base, and finds them without a restart."""
    home = live.log_path.parent / "home"
    with registry.open(home / "registry") as reg:
        (base,) = reg.bases()
        versions = []
        for seed in range(ADAPTERS):
            folder = write_adapter(tmp_path_factory.mktemp("adapters") / str(seed), base, seed)
            versions.append(reg.publish(folder, f"acme/live{seed}", principal=Principal.operator()))
    return versions


@pytest.fixture
def client(live: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def complete(client: openai.OpenAI, model: str, prompt: str, **fields: Any) -> str:
    text = client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0, **fields).choices[0].text
    assert isinstance(text, str)
    return text


def test_chat_and_stream_agree(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "embedded",
        "messages": [{"role": "user", "content": "Write a function."}],
        "max_tokens": 20,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields)
    assert whole.model == "embedded"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 20
    stream = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_the_prompt_is_what_transformers_would_make_of_it(live: RunningServer, client: openai.OpenAI) -> None:
    from transformers import AutoTokenizer

    (folder,) = (live.log_path.parent / "home" / "bases").iterdir()
    theirs = AutoTokenizer.from_pretrained(folder)
    messages: list[Any] = [
        {"role": "system", "content": "You are brief.\n  Indented"},
        {"role": "user", "content": "What is 12 + 30? 🙂"},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    from serving.tokenization import Tokenization

    assert Tokenization.load(folder).encode_chat(messages) == expected
    assert Tokenization.load(folder).encode("def f(x):\n  return 1") == theirs("def f(x):\n  return 1")["input_ids"]
    answer = client.chat.completions.create(model="base", messages=messages, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected)


async def test_a_mixed_batch_answers_as_each_alone(live: RunningServer, adapters: list[Version]) -> None:
    models = ["base", *(version.adapter for version in adapters)]
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def ask(model: str, prompt: str) -> tuple[str, str | None]:
            raw = await client.completions.with_raw_response.create(
                model=model, prompt=prompt, max_tokens=12, temperature=0
            )
            completion = raw.parse()
            return completion.choices[0].text, raw.headers.get("x-loraplex-adapter")

        pairs = [(model, prompt) for prompt in PROMPTS[:2] for model in models]
        together = await asyncio.gather(*(ask(model, prompt) for model, prompt in pairs))
        alone = [await ask(model, prompt) for model, prompt in pairs]
    assert together == alone
    digests = [None, *(version.digest for version in adapters)]
    assert [digest for _, digest in together] == digests * 2
    assert len({text for text, _ in together[: len(models)]}) > 3, "the adapters change the answers"
    wait_until(lambda: live.metric("loraplex_adapter_evictions_total") > 0)
    assert live.metric("loraplex_adapter_slots_used") <= 2


def test_sampling_is_repeatable_with_a_seed(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "base", "prompt": "def ", "max_tokens": 16, "temperature": 1.0}
    first, again, other = (client.completions.create(**fields, seed=seed).choices[0].text for seed in (1, 1, 2))
    assert first == again != other
    several = client.completions.create(**fields, seed=1, n=3).choices
    assert several[0].text == first
    assert several[1].text == other


def test_logprobs(client: openai.OpenAI, live: RunningServer) -> None:
    answer = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob
        assert token.token == token.top_logprobs[0].token
        assert sum(np.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
    assert "".join(token.token for token in content) == answer.choices[0].message.content


def test_prompts_as_token_ids_and_stop(client: openai.OpenAI, live: RunningServer) -> None:
    (folder,) = (live.log_path.parent / "home" / "bases").iterdir()
    token_ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("import os\n").ids
    text = complete(client, "base", "import os\n")
    assert (
        client.completions.create(model="base", prompt=token_ids, max_tokens=12, temperature=0).choices[0].text == text
    )
    stop = text[3:5]
    assert complete(client, "base", "import os\n", stop=[stop]) == text[: text.find(stop)]


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, live: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        complete(client, "acme/absent", "x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="base", prompt="x", max_tokens=-1)
    assert wrong.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="base", prompt="x y " * 2000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model="base", prompt="x", extra_body={"guided_json": {}})
    assert unknown.value.param == "guided_json"


def test_models_are_listed(client: openai.OpenAI, adapters: list[Version]) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"embedded", "base", *(version.adapter for version in adapters)} <= set(listed)
    entry: Any = client.models.retrieve("acme/live1@1")
    assert (entry.root, entry.parent, entry.digest) == ("acme/live1@1", "embedded", adapters[1].digest)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_request(live: RunningServer, adapters: list[Version], stream: bool) -> None:
    """What it had asked for takes a second or more, and is not generated to its end."""
    body = {"model": "acme/live0", "prompt": "x", "max_tokens": 900, "n": 8, "ignore_eos": True, "stream": stream}
    generated = live.metric("vllm:generation_tokens_total")
    with httpx.Client(base_url=live.url, timeout=30.0 if stream else 0.25) as client:
        if stream:
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body)
    wait_until(lambda: live.metric("vllm:num_requests_running") == 0, 2.0)
    assert live.metric("loraplex_sequences_inside") == 0
    assert live.metric("vllm:generation_tokens_total") - generated < 8 * 900


def test_kill_9_of_the_engine_mid_stream(live: RunningServer) -> None:
    seen: list[Any] = []
    body = {"model": "base", "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=30) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                seen.append(json.loads(line.removeprefix("data: ")))
                if len(seen) == 5:
                    (engine,) = live.engine_pids()
                    os.kill(engine, signal.SIGKILL)
                    killed_at = time.monotonic()
    assert time.monotonic() - killed_at < 2.0
    assert seen[-1]["error"]["code"] == "engine_lost"
    assert live.client.get("/readyz").status_code == 503
    live.wait_ready()
    assert live.complete("x").status_code == 200


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "target_modules": "all-linear"},
    "modules-to-save": {"modules_to_save": ["norm", "lm_head", "embed_tokens"], "added": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_makes_is_answered_as_peft_computes_it(
    kind: str, live: RunningServer, client: openai.OpenAI, tmp_path: Path
) -> None:
    """From PEFT's own folder over publish and the server on its port, beside requests for the base."""
    import torch

    from basemodel.snapshot import open_snapshot
    from tests.engine.test_kinds import expected_logits, make_kind

    home = live.log_path.parent / "home"
    (bases,) = (home / "bases").iterdir()
    snapshot = open_snapshot(bases)
    folder = make_kind(snapshot, tmp_path / kind, 5, **KINDS[kind])
    with registry.open(home / "registry") as reg:
        (base,) = reg.bases()
        version = reg.publish(folder, f"acme/{kind}", principal=Principal.operator(), base_fingerprint=base.fingerprint)
    assert version.serving is not None
    assert version.serving.loraplex.needs["kinds"]
    added = int(KINDS[kind].get("added", 0))
    vocabulary = snapshot.description.vocabulary_size
    prompt = [40, 41, 700, 9, *range(vocabulary, vocabulary + added)]
    before = complete(client, "base", PROMPTS[0])
    found = client.completions.create(model=f"acme/{kind}", prompt=prompt, max_tokens=1, temperature=0, logprobs=1)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    expected = torch.log_softmax(expected_logits(snapshot, folder, prompt, added)[-1], dim=-1).max()
    assert logprobs.token_logprobs[0] == pytest.approx(float(expected), abs=0.15)
    assert complete(client, "base", PROMPTS[0]) == before
    if added:
        with pytest.raises(openai.BadRequestError, match=f"there is no token {vocabulary}"):
            client.completions.create(model="base", prompt=prompt, max_tokens=1)
