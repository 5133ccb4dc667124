"""Mixtures and ensembles end to end: a registry on disk, the real engine, the embedded base, the `openai` client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

import registry
from basemodel.kernels.library import has_cpu_kernels
from registry import Principal, Version
from tests.registry.adapter_folders import write_json
from tests.serving.live_adapters import manifest, write_adapter
from tests.serving.server import RunningServer, running_server, wait_until

OPERATOR = Principal.operator()
PROMPT = "def parse(text):\n    for line in text:"
EXPERTS = 3


@dataclass(frozen=True)
class World:
    """A server whose registry holds three experts and a mixture of them, acme/mix, with the alias prod."""

    server: RunningServer
    home: Path
    experts: list[Version]
    mixture: Version
    client: openai.OpenAI

    def complete(self, model: str, prompt: str = PROMPT, **fields: Any) -> str:
        body = {"max_tokens": 16, "temperature": 0} | fields
        extra = {"adapters": body.pop("adapters")} if "adapters" in body else None
        answer = self.client.completions.create(model=model, prompt=prompt, extra_body=extra, **body)
        text = answer.choices[0].text
        assert isinstance(text, str)
        return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("mixtures")
    engine = [sys.executable, "-m", "serving.engine"]
    with running_server(folder, engine=engine, adapter_slots=EXPERTS, max_running=8, threads=1) as server:
        home = folder / "home"
        with registry.open(home / "registry") as reg:
            (base,) = reg.bases()
            experts = [
                reg.publish(write_adapter(folder / f"e{seed}", base, seed), f"acme/expert-{seed}", principal=OPERATOR)
                for seed in range(EXPERTS)
            ]
            mixture = reg.publish(write_mixture(folder / "mix", base, experts), "acme/mix", principal=OPERATOR)
            reg.promote("acme/mix@1", "prod", principal=OPERATOR)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield World(server, home, experts, mixture, client)


def write_mixture(folder: Path, base: registry.BaseRecord, experts: list[Version]) -> Path:
    """A gate of random weights: tokens choose different experts."""
    generator = np.random.default_rng(9)
    hidden = base.modules["model.embed_tokens"].out_features
    folder.mkdir()
    document = {
        "schema": 1,
        "method": "switch",
        "base_fingerprint": base.fingerprint,
        "top_k": 2,
        "experts": [expert.digest for expert in experts],
        "gate": {"context": "running_mean", "decay": 0.8},
    }
    write_json(folder / "loraplex_mixture.json", document)
    weight = generator.standard_normal((len(experts), hidden), dtype=np.float32) * 0.2
    save_file({"gate.weight": weight, "gate.bias": np.zeros(len(experts), np.float32)}, folder / "gate.safetensors")
    write_json(folder / "loraplex.json", manifest(base))
    return folder


def error_of(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None, str | None]:
    return caught.value.status_code, caught.value.code, caught.value.param


def test_a_mixture_is_generated_with_by_its_names(world: World) -> None:
    answers = {world.complete(name) for name in ("acme/mix", "acme/mix@prod", "acme/mix@1", world.mixture.digest)}
    others = {world.complete("base"), *(world.complete(expert.adapter) for expert in world.experts)}
    assert len(answers) == 1
    assert not answers & others
    assert len(others) == EXPERTS + 1
    raw = world.client.completions.with_raw_response.create(model="acme/mix@prod", prompt=PROMPT, max_tokens=1)
    assert raw.headers["x-loraplex-adapter"] == world.mixture.digest
    assert raw.parse().model == "acme/mix@1"
    stream = world.client.completions.create(model="acme/mix", prompt=PROMPT, max_tokens=16, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) in answers


def test_it_is_listed_and_its_choices_are_counted(world: World) -> None:
    world.complete("acme/mix@prod")
    listed = {model.id for model in world.client.models.list()}
    assert {"acme/mix", "acme/mix@prod"} <= listed
    shown = world.server.client.get("/v1/models/acme/mix").json()
    assert shown["experts"] == list(world.mixture.experts)
    label = world.mixture.digest[: len("sha256:") + 12]
    counts = [
        world.server.metric("loraplex_mixture_expert_tokens_total", mixture=label, expert=str(place))
        for place in range(EXPERTS)
    ]
    assert sum(counts) > 0
    assert max(counts) < sum(counts)


def test_an_ensemble_of_one_is_that_adapter_and_weights_count(world: World) -> None:
    name = world.experts[0].adapter
    alone = world.complete(name)
    assert world.complete("base", adapters=[{"model": name}]) == alone
    assert world.complete("base", adapters=[{"model": name, "weight": None}]) == alone
    assert world.complete("embedded", adapters=[{"model": name, "weight": 0.5}] * 2) == alone
    assert world.complete("base", adapters=[{"model": name, "weight": 0.0}]) == world.complete("base")
    mixed = [{"model": name, "weight": -1.0}, {"model": f"{world.experts[2].adapter}@1", "weight": 1.5}]
    assert world.complete("base", adapters=mixed) not in {alone, world.complete("base")}


def test_an_ensemble_says_what_served_it(world: World) -> None:
    first, second = world.experts[:2]
    entries = [{"model": first.adapter, "weight": 0.7}, {"model": second.digest, "weight": -1}]
    raw = world.client.chat.completions.with_raw_response.create(
        model="base",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=2,
        extra_body={"adapters": entries},
    )
    assert raw.parse().model == f"{first.adapter}@1*0.7+{second.adapter}@1*-1.0"
    assert raw.headers["x-loraplex-adapter"] == f"{first.digest};weight=0.7, {second.digest};weight=-1.0"
    fingerprint = raw.parse().system_fingerprint
    assert fingerprint is not None
    assert fingerprint.startswith("lpx-")
    assert fingerprint.count("-") == 2
    assert f"adapter={first.digest};weight=0.7, {second.digest};weight=-1.0" in world.server.log
    label = second.digest[: len("sha256:") + 12]
    assert world.server.metric("loraplex_adapter_requests_total", adapter=label) >= 1


@pytest.mark.skipif(not has_cpu_kernels(), reason="bits do not depend on neighbours on the kernels")
def test_all_at_once_is_what_each_is_alone(world: World) -> None:
    """Mixture, ensemble, adapter and base, free, bound to a schema and drawn with a seed, guessed and not, streamed."""
    weighted = [{"model": world.experts[0].adapter, "weight": 0.7}, {"model": world.experts[1].adapter, "weight": 0.3}]
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    models: list[tuple[str, dict[str, Any]]] = [
        ("acme/mix@prod", {}),
        ("base", {"adapters": weighted}),
        (world.experts[2].adapter, {}),
        ("base", {}),
    ]
    kinds: list[dict[str, Any]] = [
        {},
        {"structured_outputs": {"json": schema | {"additionalProperties": False}}},
        {"temperature": 1.0, "seed": 5},
    ]
    asked = [(model, extra | kind, guesses) for model, extra in models for kind in kinds for guesses in (0, 8)]

    def stream(model: str, fields: dict[str, Any], guesses: int) -> str:
        body = {"temperature": 0.0, "speculative_ngram": guesses} | fields
        pieces = world.client.completions.create(
            model=model, prompt=PROMPT, max_tokens=24, stream=True, extra_body=body
        )
        return "".join(chunk.choices[0].text for chunk in pieces)

    alone = [stream(*each) for each in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(lambda each: stream(*each), asked)) == alone
    assert alone[::2] == alone[1::2], "a guess changes no text"
    assert len(set(alone)) > len(models), "they are told apart"
    bound = [text for text, (_, fields, _) in zip(alone, asked, strict=True) if "structured_outputs" in fields]
    assert {json.loads(text)["x"] for text in bound} <= {"a", "b"}
    assert world.server.metric("vllm:spec_decode_num_draft_tokens_total") > 0


@pytest.mark.parametrize(
    ("model", "entries", "status", "param"),
    [
        ("acme/expert-0", [{"model": "acme/expert-1"}], 400, "model"),
        ("base", [{"model": "acme/expert-0"}, {"model": "acme/nobody", "weight": 1}], 404, "adapters[1].model"),
        ("base", [{"model": "acme/expert-0"}, {"model": "embedded"}], 400, "adapters[1].model"),
        ("base", [{"model": "acme/expert-0"}, {"model": "acme/mix"}], 400, "adapters[1].model"),
        ("base", [{"model": "acme/expert-0", "weight": 10.5}], 400, "adapters[0].weight"),
        ("base", [], 400, "adapters"),
        ("base", [{"model": "acme/expert-0"}] * 9, 400, "adapters"),
        ("base", [{"model": "acme/expert-0", "scale": 1}], 400, "adapters[0].scale"),
    ],
)
def test_what_an_ensemble_cannot_be(
    world: World, model: str, entries: list[dict[str, Any]], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        world.complete(model, adapters=entries)
    found, code, at = error_of(caught)
    assert (found, at) == (status, param)
    assert code == ("model_not_found" if status == 404 else "invalid_field")


def test_a_mixture_that_needs_more_slots_than_there_are(world: World, tmp_path: Path) -> None:
    with registry.open(world.home / "registry") as reg:
        (base,) = reg.bases()
        more = [
            reg.publish(write_adapter(tmp_path / f"m{seed}", base, seed), f"acme/more-{seed}", principal=OPERATOR)
            for seed in range(4, 6)
        ]
        reg.publish(write_mixture(tmp_path / "wide", base, [*world.experts, *more]), "acme/wide", principal=OPERATOR)
    with pytest.raises(openai.BadRequestError, match="--adapter-slots"):
        world.complete("acme/wide")


def test_a_foreign_reader_is_served_by_private_experts_of_a_public_mixture(world: World, tmp_path: Path) -> None:
    """Last: from the first token on, every request needs one."""
    with registry.open(world.home / "registry") as reg:
        expert = world.experts[0]
        folder = reg.pull(world.mixture, tmp_path / "mix")
        reg.publish(folder, "acme/mix", principal=OPERATOR, visibility="public")
        reg.create_tenant("rival")
        secret = reg.create_token("rival", "reader").secret
    with openai.OpenAI(base_url=f"{world.server.url}/v1", api_key=secret, max_retries=0, timeout=120) as rival:
        # That there is a token now is noticed within seconds.
        wait_until(lambda: expert.adapter not in {model.id for model in rival.models.list()}, 30)
        answer = rival.completions.create(model="acme/mix", prompt=PROMPT, max_tokens=4, temperature=0)
        assert answer.model == "acme/mix@1"
        with pytest.raises(openai.NotFoundError):
            rival.completions.create(model=expert.adapter, prompt=PROMPT, max_tokens=4)
