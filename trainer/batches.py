"""Batches: which rows go into one forward, in which order, and their tensors.

It does: plan each epoch from a seed (shuffled, rows of similar length together, a bound on tokens or rows), group the
batches into optimizer steps, and pad a batch to its longest row.
It does not: tokenize (`encoding`) or compute. A plan is a pure function of lengths, limits and seed: a resumed run
makes the same one again.

Letters: B rows of a batch, T its longest row, N its label tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.encoding import Example
from trainer.job_sections import DEFAULT_BATCH_TOKENS, DEFAULT_EPOCHS, OptimizationSection

GROUPED_ROWS = 512


@dataclass(frozen=True)
class BatchLimit:
    """The bound of a batch: padded tokens, or rows. The other one is None. A row over `tokens` goes alone."""

    tokens: int | None
    rows: int | None

    @staticmethod
    def of(section: OptimizationSection) -> BatchLimit:
        """The limit that a job sets."""
        if section.batch_rows is not None:
            return BatchLimit(None, section.batch_rows)
        return BatchLimit(section.batch_tokens or DEFAULT_BATCH_TOKENS, None)

    def allows(self, rows: int, longest: int) -> bool:
        """Whether a batch of `rows` padded to `longest` tokens is within the limit."""
        if rows == 1:
            return True
        return rows <= self.rows if self.rows is not None else rows * longest <= (self.tokens or 0)


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step: for each forward the indices of its examples. `epoch` counts from 0."""

    epoch: int
    batches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RunPlan:
    """All steps of a run. `steps` is their number; `iterate` makes them."""

    lengths: tuple[int, ...]
    limit: BatchLimit
    accumulation: int
    seed: int
    steps: int
    by_length: bool = True

    @staticmethod
    def of(examples: Sequence[Example], section: OptimizationSection, *, by_length: bool = True) -> RunPlan:
        """The plan of a job over its training examples; `by_length` puts rows of similar lengths together."""
        lengths = tuple(len(example.token_ids) for example in examples)
        limit, accumulation, seed = BatchLimit.of(section), section.gradient_accumulation, section.seed
        if section.max_steps is not None:
            return RunPlan(lengths, limit, accumulation, seed, section.max_steps, by_length)
        batches = [
            len(plan_epoch(lengths, limit, seed=seed, epoch=epoch, by_length=by_length))
            for epoch in range(section.epochs or DEFAULT_EPOCHS)
        ]
        steps = sum(-(-count // accumulation) for count in batches)
        return RunPlan(lengths, limit, accumulation, seed, steps, by_length)

    def iterate(self, *, done: int) -> Iterator[PlannedStep]:
        """The steps after the first `done`, to the end of the run."""
        number, epoch = 0, 0
        while number < self.steps:
            batches = plan_epoch(self.lengths, self.limit, seed=self.seed, epoch=epoch, by_length=self.by_length)
            for start in range(0, len(batches), self.accumulation):
                if number >= self.steps:
                    return
                if number >= done:
                    yield PlannedStep(epoch, tuple(batches[start : start + self.accumulation]))
                number += 1
            epoch += 1


def plan_epoch(
    lengths: Sequence[int], limit: BatchLimit, *, seed: int, epoch: int, by_length: bool = True
) -> list[tuple[int, ...]]:
    """Every row once, in batches of similar lengths if wished, in an order that `seed` and `epoch` decide."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if not by_length:
        return _packed(order.tolist(), lengths, limit)
    grouped: list[int] = []
    for start in range(0, len(order), GROUPED_ROWS):
        rising = (start // GROUPED_ROWS) % 2 == 0  # up, then down: neighbours across a group's border stay similar
        group = sorted(order[start : start + GROUPED_ROWS].tolist(), key=lengths.__getitem__, reverse=not rising)
        grouped += group
    batches = _packed(grouped, lengths, limit)
    return [batches[index] for index in generator.permutation(len(batches))]


def plan_by_length(lengths: Sequence[int], limit: BatchLimit) -> list[tuple[int, ...]]:
    """Every row once, longest first: the order for measuring, where it has no influence on the result."""
    return _packed(sorted(range(len(lengths)), key=lambda index: -lengths[index]), lengths, limit)


@dataclass(frozen=True)
class Batch:
    """A padded batch: token_ids [B, T]; positions [N] index the flattened [B*T] where targets [N] are predicted.

    Padding stands at the right, where causal attention shows it to nobody, so there is no attention mask.
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    row_tokens: tuple[int, ...]

    @property
    def real_tokens(self) -> int:
        """Tokens without the padding."""
        return sum(self.row_tokens)


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad `examples` to the longest of them."""
    longest = max(len(example.token_ids) for example in examples)
    token_ids = np.zeros((len(examples), longest), dtype=np.int64)
    is_label = np.zeros((len(examples), longest), dtype=np.bool_)
    for row, example in enumerate(examples):
        token_ids[row, : len(example.token_ids)] = example.token_ids
        is_label[row, : len(example.is_label)] = example.is_label
    labels = np.flatnonzero(is_label)
    return Batch(
        token_ids=torch.from_numpy(token_ids).to(device),
        positions=torch.from_numpy(labels - 1).to(device),  # token 0 of a row is no label, so this stays in the row
        targets=torch.from_numpy(token_ids.reshape(-1)[labels]).to(device),
        row_tokens=tuple(len(example.token_ids) for example in examples),
    )


def _packed(order: Sequence[int], lengths: Sequence[int], limit: BatchLimit) -> list[tuple[int, ...]]:
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        if current and not limit.allows(len(current) + 1, max(longest, lengths[index])):
            batches.append(tuple(current))
            current, longest = [], 0
        current.append(index)
        longest = max(longest, lengths[index])
    if current:
        batches.append(tuple(current))
    return batches
