"""The LoRA plans of a step: which rank rows its tokens use, in all layers and in the output head.

It does: make them from the step's rows, routing the rows of mixtures all at once, and keep the last ones: while the
same rows go on decoding with the same adapters, nothing is made anew.
It does not: choose rows (`scheduler`), or say what a layer does with a plan (`basemodel.lora_ops`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from basemodel.cuda.library import has_gpu_kernels
from basemodel.cuda.tiles import plan_tiles
from basemodel.lora_ops import LoraPlan, plan_lora
from basemodel.lora_segment import Choice, RankRows, Segment
from serving.engine.request import Row
from serving.engine.router import Walk, route

Plans = tuple[LoraPlan | None, LoraPlan | None]
Segments = list[Segment]
Uses = tuple[int, int, tuple[RankRows, ...]]  # a row's tokens, how many of them are sampled, its adapters


class StepPlans:
    """The plan of all tokens of a step, and that of the sampled ones, which the output head sees. A runner owns it."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """`dtype` is the one in which adapters are kept where the CPU kernel does not compute them."""
        self._device, self._dtype = device, dtype
        self._uses: list[Uses] = []
        self._kept: Plans = (None, None)

    def of(self, rows: Sequence[Row], sampled_tokens: Sequence[int]) -> Plans:
        """`rows` in the order of their tokens, and of how many of its last tokens each is sampled."""
        uses = _uses(rows, sampled_tokens)
        if any(row.request.router is not None for row in rows):
            return self._made(uses, _choices(rows))
        if uses != self._uses:
            self._uses, self._kept = uses, self._made(uses, [None] * len(uses))
        return self._kept

    def _made(self, uses: Sequence[Uses], choices: Sequence[Choice | None]) -> Plans:
        every, last = _segments(uses, choices)
        if not every:
            return None, None
        plan = self._plan(every)
        return plan, plan if last is every else self._plan(last)

    def _plan(self, segments: Sequence[Segment]) -> LoraPlan:
        if has_gpu_kernels(self._device):
            return plan_tiles(segments, device=self._device)
        return plan_lora(segments, device=self._device, dtype=self._dtype)


def segments_of(rows: Sequence[Row], sampled_tokens: Sequence[int]) -> tuple[Segments, Segments]:
    """What all tokens use, and the sampled ones, as segments; none where no row uses an adapter. Routes mixtures."""
    return _segments(_uses(rows, sampled_tokens), _choices(rows))


def _uses(rows: Sequence[Row], sampled_tokens: Sequence[int]) -> list[Uses]:
    return [(row.count, last, row.request.rank_rows or ()) for row, last in zip(rows, sampled_tokens, strict=True)]


def _segments(uses: Sequence[Uses], choices: Sequence[Choice | None]) -> tuple[Segments, Segments]:
    """Of all tokens and of the sampled ones: the same list where these are all."""
    if not any(adapters for _, _, adapters in uses):
        return [], []
    pairs = list(zip(uses, choices, strict=True))
    every = [Segment(tokens, adapters, choice) for (tokens, _, adapters), choice in pairs]
    if all(tokens == last for tokens, last, _ in uses):
        return every, every
    return every, [Segment(last, adapters, _last(choice, last)) for (_, last, adapters), choice in pairs if last]


def _choices(rows: Sequence[Row]) -> list[Choice | None]:
    """The experts of each row's tokens, where it is of a mixture."""
    walks = [
        Walk(row.request.router, row.request.tokens, row.draft, row.request.computed, row.request.computed + row.count)
        for row in rows
        if row.request.router is not None
    ]
    routed = iter(route(walks))
    return [None if row.request.router is None else next(routed) for row in rows]


def _last(choice: Choice | None, tokens: int) -> Choice | None:
    return None if choice is None else choice.part(slice(-tokens, None))
