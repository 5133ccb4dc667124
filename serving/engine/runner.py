"""Runs the model on a batch.

It does: own the base model with its adapter sites and its KV cache, and run one forward for every row, whatever its
adapter. It does not: choose rows (`scheduler`) or tokens (`sampler`).
"""

from __future__ import annotations

import torch

from basemodel.attach import AdapterSites
from basemodel.cuda.library import has_gpu_kernels
from basemodel.fusion import fuse
from basemodel.load import Base
from serving.engine.attention import PagedAttention
from serving.engine.batch import Batch, build_batch, probe_batch
from serving.engine.graphed_step import GraphBackend, GraphedSteps, GraphLimits
from serving.engine.request import Request, Row
from serving.engine.step_plans import StepPlans
from serving.engine.step_tables import device_batch, step_tables
from serving.engine.trial import own_logits, trial_blocks, try_model
from serving.messages import Sampling


class Runner:
    """The model on its device. Only the engine loop calls it."""

    def __init__(self, base: Base, sites: AdapterSites, *, kv_slots: int, block_tokens: int) -> None:
        """Takes over a base whose layers have their adapter sites: its attention is the engine's from now on."""
        self.base = base
        self.sites = sites
        self._own_logits = own_logits(base.model)
        fusion, self._fused = fuse(base.model, sites)
        self._kv_slots = kv_slots
        self._block_tokens = block_tokens
        self._device = base.model.device
        self._plans = StepPlans(self._device, sites.dtype)
        self.is_gpu = has_gpu_kernels(self._device)
        self.graphs: GraphedSteps | None = None
        if self.is_gpu:
            sites.join()
        scratch_slots = block_tokens if self.is_gpu else 0  # behind all others: what padded rows write to
        self.attention = PagedAttention(base.model, kv_slots + scratch_slots)
        fusion.attend, fusion.paged = self.attention.attend_rows, self.attention.paged_rows

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> tuple[Batch, torch.Tensor]:
        """One forward. Returns the batch and the logits [S, V] of its sampled rows."""
        if self.is_gpu:
            return self._run_on_gpu(rows)
        batch = build_batch(rows, self._plans, self._block_tokens, device=self._device)
        return batch, self._forward(batch)

    @torch.inference_mode()
    def run_alone(self, request: Request) -> torch.Tensor:
        """The logits [V] after a prompt, leaving nothing in the KV cache."""
        return self._forward(probe_batch(request, self._plans, device=self._device))[0]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Allocates the KV cache, and raises UnsupportedModelError where the model is not served as it computes.

        Before the first request: it writes to the cache. A cache that is too small for it is not tried.
        """
        self.run_alone(Request("warm-up", "", [0, 0], Sampling(max_tokens=1), (), arrival=-1))
        if trial_blocks(self._block_tokens) * self._block_tokens <= self._kv_slots:
            try_model(self.base.model, self._own_logits, self.run, self._block_tokens)

    @property
    def is_on_cpu_kernels(self) -> bool:
        """Whether all products and attention are computed by the CPU kernels, which give a row the same bits whatever
        is beside it. After `warm_up`.
        """
        has_experts = any(parameter.ndim > 2 for parameter in self.base.model.parameters())  # torch's, in one tensor
        return not (has_experts or self.sites.copies) and self.attention.is_on_cpu_kernels

    def capture_steps(self, backend: GraphBackend, *, most_rows: int, memory_bytes: int) -> None:
        """From now on steps of at most `most_rows` rows that decode are replayed, where a captured one fits.

        After `warm_up`, before the first request: it sets the rank rows of all layers aside, and writes to the cache.
        """
        assert self.is_gpu, "only the GPU path reads its step from tables"
        self.sites.set_aside()
        longest = min(self.base.description.context_tokens, self._kv_slots)
        limits = GraphLimits(
            most_rows=most_rows,
            block_tokens=self._block_tokens,
            blocks_per_row=-(-longest // self._block_tokens),
            scratch_slot=self._kv_slots,
            memory_bytes=memory_bytes,
        )
        self.graphs = GraphedSteps(self._forward, backend, limits, self._device, covers=self.sites.are_set_aside)
        with torch.inference_mode():  # but not for the rank rows, which are written to outside of it
            self.graphs.capture()

    def _run_on_gpu(self, rows: list[Row]) -> tuple[Batch, torch.Tensor]:
        """As `run`; the logits of a captured step are overwritten by the next one."""
        tables = step_tables(rows, self._block_tokens, self._device)
        size = None if self.graphs is None else self.graphs.size_for(tables)
        if self.graphs is not None and size is not None:
            return self.graphs.run(tables, size)
        batch = device_batch(tables, self._block_tokens, self._device)
        return batch, self._forward(batch)

    def _forward(self, batch: Batch) -> torch.Tensor:
        self.attention.step = batch.attention
        self.sites.plan = batch.plan
        self.sites.head_plan = batch.head_plan
        try:
            if self._fused is not None and batch.logits_index is not None:
                return self._fused(batch.input_ids, batch.positions, batch.logits_index)
            result = self.base.model(
                input_ids=batch.input_ids,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=0 if batch.logits_index is None else batch.logits_index,
            )
        finally:
            self.attention.step = self.sites.plan = self.sites.head_plan = None
        logits: torch.Tensor = result.logits[0]
        return logits
