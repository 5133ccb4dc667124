"""A decoder on the CPU kernels from token ids to logits: its own embedding, rotary table, fused layers, norm and head.

It does: call these modules one after the other, without what transformers does around them in every step (defaults,
masks, caches, named outputs); only where a trial gives the same bits as the model's own forward.
It does not: compute anything itself, or know models with anything else between these modules: they run as they are.

Letters: T tokens, S sampled tokens, H hidden features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from basemodel.attach import AdapterSites
from basemodel.fused_decoder import FusedDecoder, fused_decoder
from basemodel.fused_layer import FusedLayer, Fusion
from basemodel.rotary_table import RotaryTable

MODELS = {f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")}
PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
TRIAL_IDS, TRIAL_POSITIONS, TRIAL_INDEX = (3, 1, 4, 1, 5), (0, 1, 2, 40, 900), (4, 1)


class FusedModel:
    """input_ids and positions [1, T], index [S] (tokens whose logits are wanted, in order) -> logits [S, V]."""

    def __init__(
        self, core: nn.Module, layers: list[FusedLayer], decoder: FusedDecoder | None, head: nn.Module
    ) -> None:
        """`core` is the model without its head. Its embedding and norm are asked for in every step: an adapter may
        have put a stand-in there. `decoder` computes all `layers` at once, where it can.
        """
        self._core: Any = core
        self._layers = layers
        self._head = head
        self._decoder = decoder
        self._turns = RotaryTable(core.get_submodule("rotary_emb"))

    def __call__(self, input_ids: torch.Tensor, positions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The logits of a step, whose plan and attention are set (`AdapterSites.plan`, `Fusion.attend`)."""
        hidden: torch.Tensor = self._core.embed_tokens(input_ids)
        turns = self._turns.of(positions, hidden)
        decoded = None if self._decoder is None else self._decoder(hidden, turns)
        if decoded is None:
            turn = turns.of_tokens()
            for layer in self._layers:
                hidden = layer(hidden, position_embeddings=turn, attention_mask=None)
        else:
            hidden = decoded
        rows: torch.Tensor = self._core.norm(hidden)[0]
        logits: torch.Tensor = self._head(rows if len(index) == len(rows) else rows[index])
        return logits


def fused_model(model: PreTrainedModel, sites: AdapterSites, fusion: Fusion) -> FusedModel | None:
    """What can stand in for the forward of this model, whose layers are fused; None: it runs as it is.

    The model's attention function must be a trial's (`trials.listen`).
    """
    core, head = model.base_model, model.get_output_embeddings()
    if type(model).__name__ not in MODELS or {name for name, _ in core.named_children()} != PARTS:
        return None
    if list(model.children()) != [core, head]:
        return None
    layers = [layer.forward for layer in core.get_submodule("layers").children()]
    fused = [layer for layer in layers if isinstance(layer, FusedLayer)]
    if len(fused) != len(layers) or len(layers) != model.config.num_hidden_layers:
        return None
    found = FusedModel(core, fused, fused_decoder(fused, sites, fusion), head)
    return found if _gives_the_same_bits(model, found, fusion) else None


def _gives_the_same_bits(model: PreTrainedModel, found: FusedModel, fusion: Fusion) -> bool:
    ids, positions, index = torch.tensor([TRIAL_IDS]), torch.tensor([TRIAL_POSITIONS]), torch.tensor(TRIAL_INDEX)
    fusion.attend = lambda layer, query, key, value, **options: query
    theirs = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=index).logits[0]
    ours = found(ids, positions, index)
    fusion.attend = None
    return torch.equal(ours, theirs)
