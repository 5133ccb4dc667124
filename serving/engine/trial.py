"""Does the engine compute what the model itself computes? Asked once, before the first request.

It does: run two short prompts through transformers' own attention, and the same two side by side through the paged
batch, and compare. It does not: know families. A model whose layers mix neighbours' tokens (state-space layers), or
whose attention does not come through here, is refused, never served wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from serving.engine.errors import UnsupportedModelError
from serving.engine.request import Request, Row
from serving.messages import Sampling

PROMPT_TOKENS = (9, 5)
# Of the norm of the model's own logits: the rounding of the types in which bases compute, and far less than a mistake.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> list[torch.Tensor]:
    """The logits [V] after each trial prompt, with the attention that the model was loaded with."""
    return [
        model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1].float()
        for prompt in _prompts(model)
    ]


def try_model(
    model: PreTrainedModel, expected: Sequence[torch.Tensor], run: Callable[[list[Row]], Any], block_tokens: int
) -> None:
    """Compare `run` (of `Runner`) with `own_logits`: all but the last tokens in one step, these in another.

    Leaves keys and values in the first blocks of the cache, which nobody owns yet. Raises UnsupportedModelError.
    """
    requests: list[Request] = []
    free = 0
    for prompt in _prompts(model):
        needed = -(-len(prompt) // block_tokens)
        owned = list(range(free, free + needed))
        requests.append(Request(f"trial-{free}", "", prompt, Sampling(max_tokens=1), (), arrival=-1, blocks=owned))
        free += needed
    run([Row(request, len(request.tokens) - 1) for request in requests])
    for request in requests:
        request.computed = len(request.tokens) - 1
    _, logits = run([Row(request, 1) for request in requests])
    for own, found in zip(expected, logits, strict=True):
        difference = float((found.float() - own).norm() / own.norm())
        if not difference <= TOLERANCE[model.dtype]:
            raise UnsupportedModelError(
                type(model).__name__,
                f"in a batch its logits differ from its own by {difference:.2g} of their size, where rounding explains "
                f"{TOLERANCE[model.dtype]:.2g} at most; its layers need something that this engine does not give them",
            )


def trial_blocks(block_tokens: int) -> int:
    """Blocks of the KV cache that a trial needs."""
    return sum(-(-tokens // block_tokens) for tokens in PROMPT_TOKENS)


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    vocabulary = model.config.get_text_config().vocab_size
    return [
        [(5 + 7 * index * index + number) % vocabulary for index in range(tokens)]
        for number, tokens in enumerate(PROMPT_TOKENS)
    ]
