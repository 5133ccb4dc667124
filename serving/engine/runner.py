"""Runs the model on a batch.

It does: own the base model with its adapter sites and its KV cache, and run one forward for every row, whatever its
adapter. It does not: choose rows (`scheduler`) or tokens (`sampler`).
"""

from __future__ import annotations

import torch

from basemodel.attach import AdapterSites
from basemodel.fusion import fuse
from basemodel.load import Base
from serving.engine.attention import PagedAttention
from serving.engine.batch import Batch, build_batch, probe_batch
from serving.engine.request import Request, Row
from serving.engine.step_plans import StepPlans
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
        self.attention = PagedAttention(base.model, kv_slots)
        fusion.attend = self.attention.attend_rows
        self._block_tokens = block_tokens
        self._device = base.model.device
        self._plans = StepPlans(self._device, sites.dtype)

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> tuple[Batch, torch.Tensor]:
        """One forward. Returns the batch and the logits [S, V] of its sampled rows."""
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

    def _forward(self, batch: Batch) -> torch.Tensor:
        self.attention.step = batch.attention
        self.sites.plan = batch.plan
        self.sites.head_plan = batch.head_plan
        try:
            if self._fused is not None:
                return self._fused(batch.input_ids, batch.positions, batch.logits_index)
            result = self.base.model(
                input_ids=batch.input_ids,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.logits_index,
            )
        finally:
            self.attention.step = self.sites.plan = self.sites.head_plan = None
        logits: torch.Tensor = result.logits[0]
        return logits
