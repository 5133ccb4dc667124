"""How a fused block is tried against the module that it stands in for: rows, angles, and how near is near enough.

It does: make a trial's inputs, listen to what a module gives its attention function, and compare.
It does not: know blocks (`blocks`).

Letters: T tokens, H features, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

logger = logging.getLogger(__name__)

TRIAL = "loraplex_trial"  # the name of the attention function that trials are heard through
TRIAL_SCALES = (1.0, 0.01, 20.0)  # of the rows of a trial: a wrong epsilon shows in small ones
# Of the norm of a trial's result: one value in ten that differs by a rounding, and no more.
TRIAL_TOLERANCE = 1e-3


def listen(heard: list[tuple[list[torch.Tensor], dict[str, Any]]]) -> str:
    """Registers, as TRIAL, an attention function that writes down what it is given and answers with the query."""

    def listening(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **options: Any
    ) -> tuple[torch.Tensor, None]:
        heard.append(([query.clone(), key.clone(), value.clone()], options))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(TRIAL, listening)
    return TRIAL


def trial_rows(features: int) -> torch.Tensor:
    """Rows [T, H] of sizes that differ."""
    generator = torch.Generator().manual_seed(features)
    rows = torch.randn(len(TRIAL_SCALES), features, generator=generator)
    return (rows * torch.tensor(TRIAL_SCALES)[:, None]).to(torch.bfloat16)


def trial_turn(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, T, D] of some angles."""
    angles = torch.rand(1, tokens, size // 2, generator=torch.Generator().manual_seed(size)).repeat(1, 1, 2) * 6
    return angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


def agree(module: nn.Module, block: Callable[..., torch.Tensor], rows: torch.Tensor) -> bool:
    """Whether a block computes what its module computes."""
    return near(block(rows), module(rows))


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Row by row, so that a small row's error is not hidden by a large one."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    difference = (ours.double() - theirs.double()).norm(dim=-1)
    near = bool((difference <= TRIAL_TOLERANCE * theirs.double().norm(dim=-1)).all())
    if not near:
        logger.info("a block was not fused: it differs from its module by %.2g", float(difference.max()))
    return near
