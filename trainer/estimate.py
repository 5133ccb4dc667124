"""How much memory a run's activations need, roughly: enough to decide on gradient checkpointing.

It does: estimate from shapes. It does not: measure. The figures are upper guesses; being wrong costs a third of the
speed in one direction and an out-of-memory error, which `gradient_checkpointing = "on"` mends, in the other.
"""

from __future__ import annotations

import os

import torch

from basemodel.load import Base
from trainer.job import Job

BYTES_PER_ADAPTED_FEATURE = 8  # of each token: the layer's bf16 input and output, and the adapter's float32 copies
BYTES_PER_LOGIT = 12  # float32 logits, their log-softmax and their gradient
SHARE_OF_MEMORY = 0.4


def wants_checkpointing(job: Job, base: Base, modules: list[str], *, batch_tokens: int) -> bool:
    """Whether to recompute activations: as the job says, or where one forward would take too much of the memory."""
    choice = job.optimization.gradient_checkpointing
    if choice != "auto":
        return choice == "on"
    needed = activation_bytes(base, modules, batch_tokens=batch_tokens)
    return needed > SHARE_OF_MEMORY * _memory_bytes(base.model.device)


def activation_bytes(base: Base, modules: list[str], *, batch_tokens: int) -> int:
    """What one forward of `batch_tokens` keeps for its backward."""
    shapes = base.description.modules
    features = sum(shapes[name].in_features + shapes[name].out_features for name in shapes if name in set(modules))
    linear = sum(shape.in_features + shape.out_features for shape in shapes.values() if shape.kind == "linear")
    per_token = BYTES_PER_ADAPTED_FEATURE * max(features, linear) + BYTES_PER_LOGIT * base.description.vocabulary_size
    return per_token * batch_tokens


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
