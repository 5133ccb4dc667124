"""The learning rate of each step: a pure function, so a resumed run needs no scheduler state.

It does: linear warm-up, then cosine or linear decay to zero, or a constant. It does not: touch an optimizer.
"""

from __future__ import annotations

import math

from trainer.job_sections import OptimizationSection


def learning_rate_at(step: int, *, steps: int, section: OptimizationSection) -> float:
    """The learning rate of step `step` of `steps`, counted from 0. Never zero, so that each step teaches something."""
    warmup_steps = round(steps * section.warmup_ratio)
    if step < warmup_steps:
        return section.learning_rate * (step + 1) / warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    remaining = 1 - progress if section.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return section.learning_rate * remaining
