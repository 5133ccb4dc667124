"""What the engine says of itself: queues, memory and counters at one moment.

It does: read. It does not: change anything, or send it (`process`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from serving.engine.scheduler import Scheduler
from serving.messages import AdapterState, Stats


@dataclass
class Counters:
    """What only grows. Only the engine changes it."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    step_seconds: float = 0.0
    last_step_rows: int = 0


def take_snapshot(scheduler: Scheduler, counters: Counters, *, slot_bytes: int) -> Stats:
    """All that `Stats` tells. `slot_bytes` is the device memory set aside for adapters."""
    blocks, pool = scheduler.blocks, scheduler.pool
    return Stats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        kv_blocks_total=blocks.total,
        kv_blocks_used=blocks.total - blocks.free,
        slots_total=pool.device.slots,
        slots_used=len(pool.resident_digests),
        slot_bytes=slot_bytes,
        host_bytes=pool.host_bytes,
        preemptions=scheduler.preemptions,
        adapter_loads=pool.device.loads,
        adapter_evictions=pool.device.evictions,
        adapter_load_seconds=pool.load_seconds,
        adapters=_adapter_states(scheduler),
        prefix_queries=scheduler.prefix_queries,
        prefix_hits=scheduler.prefix_hits,
        mixtures=pool.tallies.states(),
        **asdict(counters),
    )


def _adapter_states(scheduler: Scheduler) -> list[AdapterState]:
    pool = scheduler.pool
    running = Counter(digest for request in scheduler.running for digest in request.digests)
    waiting = Counter(digest for request in scheduler.waiting for digest in request.digests)
    places: dict[str, Literal["slot", "host", "loading"]] = dict.fromkeys(pool.reading_digests, "loading")
    places |= dict.fromkeys(pool.host_digests, "host")
    places |= dict.fromkeys(pool.resident_digests, "slot")
    return [
        AdapterState(
            digest=digest,
            place=place,
            adapter_bytes=pool.adapter_bytes(digest),
            running=running[digest],
            waiting=waiting[digest],
        )
        for digest, place in places.items()
    ]
