"""The forward that training and evaluation share: logits where something is predicted, and the loss over them.

It does: run a model on a batch and compute the output head on label positions only. In a prompt-completion batch most
tokens are masked, and the head over a large vocabulary is the largest single product and the largest tensor.
It does not: pad (`batches`), normalize or step (`loop`).

Letters: B rows, T tokens, N label tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from trainer.batches import Batch
from trainer.tuners import PeftModel


def label_logits(model: PeftModel, batch: Batch) -> Tensor:
    """The logits [N, V] that predict `batch.targets`.

    A hook before the head keeps the N hidden states that matter: [B, T, H] -> [1, N, H]. What a model does behind its
    head (scaling, soft caps) works on any shape, so this holds for every decoder in transformers.
    """

    def keep_labels(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        return (hidden.flatten(0, 1).index_select(0, batch.positions).unsqueeze(0), *args[1:])

    handle = base_of(model).get_output_embeddings().register_forward_pre_hook(keep_labels)
    try:
        logits: Tensor = model(input_ids=batch.token_ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits.squeeze(0)


def summed_loss(model: PeftModel, batch: Batch) -> Tensor:
    """The cross-entropy of the batch in float32, summed over its label tokens."""
    return F.cross_entropy(label_logits(model, batch).float(), batch.targets, reduction="sum")


def base_of(model: PeftModel) -> PreTrainedModel:
    """The transformers model inside, with the adapter's layers in it."""
    return cast("PreTrainedModel", model.get_base_model())
