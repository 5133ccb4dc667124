from __future__ import annotations

import threading
import time

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.api.adapters_in_use import AdaptersInUse
from serving.api.instruments import NAMED_ADAPTERS, Instruments
from serving.engine_totals import MIXTURES_NAMED, EngineTotals
from serving.messages import AdapterState, MixtureState, Stats
from tests.serving.conftest import Stocked
from tests.serving.server import RunningServer, wait_until


def test_a_request_is_counted(server: RunningServer, stocked: Stocked) -> None:
    label = stocked.first.digest[: len("sha256:") + 12]
    server.chat("!say abc", model="acme/sql@prod")

    def counts() -> list[float]:
        return [
            server.metric("loraplex_requests_total", route="chat", outcome="ok"),
            server.metric("loraplex_adapter_requests_total", adapter=label),
            server.metric("loraplex_adapter_generation_tokens_total", adapter=label),
            server.metric("vllm:request_success_total", finished_reason="stop", model_name="bytes"),
            server.metric("vllm:time_to_first_token_seconds_count"),
            server.metric("vllm:inter_token_latency_seconds_count"),
            server.metric("vllm:request_generation_tokens_sum"),
            server.metric("vllm:request_prompt_tokens_sum"),
            server.metric("vllm:e2e_request_latency_seconds_count"),
        ]

    before = counts()
    generated = server.metric("vllm:generation_tokens_total")
    server.chat("!say abc", model="acme/sql@prod")
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [1, 1, 4, 1, 1, 3, 4, 11, 1]
    wait_until(lambda: server.metric("vllm:generation_tokens_total") >= generated + 3)


def test_each_sequence_has_its_own_prompt(server: RunningServer) -> None:
    server.chat("!say a")
    before = server.metric("vllm:request_prompt_tokens_sum")
    server.complete(["abc", "defgh"], n=2)
    assert server.metric("vllm:request_prompt_tokens_sum") == before + 2 * (3 + 5)


def test_queue_time_is_the_engines(server: RunningServer) -> None:
    server.chat("!say a")
    count = server.metric("vllm:request_queue_time_seconds_count")
    total = server.metric("vllm:request_queue_time_seconds_sum")
    server.chat("!say a")
    assert server.metric("vllm:request_queue_time_seconds_count") == count + 1
    assert abs(server.metric("vllm:request_queue_time_seconds_sum") - total - 0.001) < 1e-6


def test_the_gateways_lora_metric_is_one_series_with_the_requests_names(server: RunningServer) -> None:
    def series() -> list[dict[str, str]]:
        text = server.client.get("/metrics").text
        return [
            sample.labels
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vllm:lora_requests_info"
        ]

    body = {"model": "acme/sql@prod", "prompt": "!slow a", "max_tokens": 100}
    asking = threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/completions", json=body, timeout=30))
    asking.start()
    wait_until(lambda: series()[0]["running_lora_adapters"] == "acme/sql@prod")
    assert len(series()) == 1
    assert series()[0]["max_lora"] == "8"
    asking.join()
    assert series()[0]["running_lora_adapters"] == ""
    wait_until(lambda: abs(server.metric("vllm:lora_requests_info") - time.time()) < 5)


def test_adapter_labels_are_bounded() -> None:
    metrics = CollectorRegistry()
    instruments = Instruments(metrics, lambda: "bytes")
    for number in range(NAMED_ADAPTERS + 10):
        instruments.request_ended("chat", "ok", seconds=1.0, digests=[f"sha256:{number:012d}"], generation_tokens=2)
    families = {family.name: family for family in metrics.collect()}
    samples = {sample.labels["adapter"]: sample.value for sample in families["loraplex_adapter_requests"].samples}
    assert len(samples) == NAMED_ADAPTERS + 1
    assert samples["other"] == 10


def test_adapters_in_use() -> None:
    in_use = AdaptersInUse()
    state = AdapterState(digest="d1", place="slot", adapter_bytes=1, running=1, waiting=0)
    in_use.enter("d1", "acme/a@prod")
    in_use.enter("d1", "acme/a")
    in_use.enter("d2", "acme/b")
    assert in_use.running_and_waiting([state]) == (["acme/a", "acme/a@prod"], ["acme/b"])
    in_use.leave("d1", "acme/a")
    in_use.leave("d2", "acme/b")
    assert in_use.running_and_waiting([]) == ([], ["acme/a@prod"])


def stats(steps: int, mixtures: dict[str | None, tuple[int, ...]] | None = None) -> Stats:
    states = [MixtureState(digest=digest, chosen=chosen) for digest, chosen in (mixtures or {}).items()]
    fields: dict[str, int] = dict.fromkeys(Stats.__struct_fields__, 0) | {"steps": steps}
    return Stats(**fields | {"adapters": [], "mixtures": states})  # type: ignore[arg-type]


def test_totals_go_on_over_restarts() -> None:
    totals = EngineTotals()
    totals.add(None, stats(5))
    totals.add(stats(5), stats(7))
    totals.add(None, stats(2))  # a new engine
    assert totals.steps == 9


def test_choices_of_experts_add_up_over_restarts_and_names_are_bounded() -> None:
    totals = EngineTotals()
    totals.add(None, stats(1, {"m0": (3, 1)}))
    totals.add(stats(1, {"m0": (3, 1)}), stats(2, {"m0": (5, 1), None: (2, 0, 7)}))
    totals.add(None, stats(1, {f"m{index}": (1, 1) for index in range(MIXTURES_NAMED)}))  # a new engine
    totals.add(None, stats(1, {f"n{index}": (1, 1) for index in range(MIXTURES_NAMED)}))
    assert totals.chosen["m0", 0] == 6
    assert totals.chosen["m0", 1] == 2
    named = {digest for digest, _ in totals.chosen if digest is not None}
    assert named == {f"m{index}" for index in range(MIXTURES_NAMED)}
    assert totals.chosen[None, 0] == 2 + MIXTURES_NAMED
    assert totals.chosen[None, 2] == 7
