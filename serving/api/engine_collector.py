"""Metrics that are read when Prometheus asks: the engine's last snapshot, its totals, and the server's own state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.adapter_loader import AdapterLoader
from serving.api.adapters_in_use import AdaptersInUse
from serving.api.instruments import DIGEST_CHARACTERS, ENGINE, LABELS, OTHER
from serving.api.limits import Gate
from serving.engine_client import EngineClient
from serving.messages import Stats
from serving.served_base import ServedBase

TOTALS = (
    ("vllm:num_preemptions", "Sequences that had to give up their blocks.", "preemptions"),
    ("vllm:prompt_tokens", "Prompt tokens computed.", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated.", "generation_tokens"),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_queries"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_hits"),
    ("vllm:spec_decode_num_draft_tokens", "Tokens that were guessed and verified.", "drafted_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.", "accepted_tokens"),
)
OWN_TOTALS = (
    ("loraplex_engine_steps", "Forward steps of the engine.", "steps"),
    ("loraplex_engine_step_seconds", "Time in forward steps.", "step_seconds"),
    ("loraplex_adapter_loads", "Adapters brought into a device slot.", "adapter_loads"),
    ("loraplex_adapter_load_seconds", "Time spent loading adapters.", "adapter_load_seconds"),
    ("loraplex_adapter_evictions", "Adapters put out of a device slot.", "adapter_evictions"),
)
STATE = (
    ("loraplex_adapter_slots", "Device slots for adapters.", "slots_total"),
    ("loraplex_adapter_slots_used", "Device slots that hold an adapter.", "slots_used"),
    ("loraplex_adapter_slot_bytes", "Device bytes held by adapters.", "slot_bytes"),
    ("loraplex_adapter_host_bytes", "Host memory of adapters that counts against --host-cache-mib.", "host_bytes"),
    ("loraplex_engine_rows", "Rows in the last forward step.", "last_step_rows"),
)


class EngineCollector(Collector):
    """Reads; changes nothing. While no engine runs, its gauges are left out and its totals stay."""

    def __init__(
        self,
        engine: EngineClient,
        loader: AdapterLoader,
        gate: Gate,
        adapters_in_use: AdaptersInUse,
        base: Callable[[], ServedBase | None],
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._gate = gate
        self._adapters_in_use = adapters_in_use
        self._base = base

    def collect(self) -> Iterator[Metric]:
        """Every family, in a fixed order."""
        yield from self._server()
        base = self._base()
        if base is None:
            return
        labels = (base.name, ENGINE)
        for name, text, field in TOTALS:
            yield _counter(name, text, getattr(self._engine.totals, field), labels)
        for name, text, field in OWN_TOTALS:
            yield _counter(name, text, getattr(self._engine.totals, field))
        yield self._chosen_experts()
        yield _gauge(
            "vllm:cache_config_info",
            "The KV cache.",
            1.0,
            {"block_size": str(base.kv_block_tokens), "num_gpu_blocks": str(base.kv_blocks)},
        )
        if (stats := self._engine.stats) is not None:
            yield from self._snapshot(stats, base, labels)

    def _server(self) -> Iterator[Metric]:
        yield _gauge("loraplex_engine_ready", "Whether the engine takes requests.", float(self._engine.is_ready))
        yield _counter("loraplex_engine_starts", "Starts of the engine process.", self._engine.starts)
        yield _gauge("loraplex_sequences_inside", "Sequences let in and not yet answered.", self._gate.inside)
        yield _gauge("loraplex_adapter_disk_bytes", "Adapter folders on disk.", self._loader.cache.held_bytes)
        yield _counter("loraplex_adapter_fetches", "Adapters fetched from the registry.", self._loader.fetched)

    def _chosen_experts(self) -> Metric:
        text = "Tokens for which a mixture's expert was chosen, by mixture and place in its gate."
        family = CounterMetricFamily("loraplex_mixture_expert_tokens", text, labels=["mixture", "expert"])
        for (digest, place), count in sorted(self._engine.totals.chosen.items(), key=lambda item: str(item[0])):
            family.add_metric([OTHER if digest is None else digest[:DIGEST_CHARACTERS], str(place)], count)
        return family

    def _snapshot(self, stats: Stats, base: ServedBase, labels: tuple[str, str]) -> Iterator[Metric]:
        model = dict(zip(LABELS, labels, strict=True))
        yield _gauge("vllm:num_requests_running", "Sequences in the batch.", stats.running, model)
        yield _gauge("vllm:num_requests_waiting", "Sequences that wait in the engine.", stats.waiting, model)
        usage = stats.kv_blocks_used / max(1, stats.kv_blocks_total)
        yield _gauge("vllm:kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.", usage, model)
        running, waiting = self._adapters_in_use.running_and_waiting(stats.adapters)
        yield _gauge(
            "vllm:lora_requests_info",
            "Adapters of the requests inside; the value is the time.",
            time.time(),
            {
                "max_lora": str(base.adapter_slots),
                "running_lora_adapters": ",".join(running),
                "waiting_lora_adapters": ",".join(waiting),
            },
        )
        for name, text, field in STATE:
            yield _gauge(name, text, getattr(stats, field))


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    labels = labels or {}
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float, labels: tuple[str, str] | None = None) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(LABELS) if labels else [])
    family.add_metric(list(labels or ()), value)
    return family
