"""The optimizer of the pretraining run: Muon for matrices, AdamW for the embedding and the scales, one schedule.

The schedule is warm-up, constant, linear decay to zero, by step number only.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Step numbers of the run; learning rates are the peaks."""

    steps: int
    decay_steps: int
    warmup_steps: int = 40
    muon_rate: float = 0.02
    adam_rate: float = 4e-3

    def share(self, step: int) -> float:
        """The share of the peak learning rate at a step, 0 to 1."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        return max(0.0, min(rise, fall))


class PairedOptimizer:
    """Muon and AdamW stepped together. The training loop alone changes it."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.schedule = schedule
        matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
        self.muon = torch.optim.Muon(matrices, lr=schedule.muon_rate, weight_decay=0.02, momentum=0.95)
        self.adam = torch.optim.AdamW(others, lr=schedule.adam_rate, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-10)

    def step(self, step: int) -> None:
        """Apply the gradients of this step and clear them."""
        share = self.schedule.share(step)
        for optimizer, peak in ((self.muon, self.schedule.muon_rate), (self.adam, self.schedule.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        """Both states, for a checkpoint."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Take over a saved state."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
