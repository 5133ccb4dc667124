"""An attention layer of transformers on the CPU kernels: q, k, v, their norms and rotary embedding in one call.

It does: what comes before and after attention. It does not: attend: that is the model's attention function.

Letters: T tokens, H hidden features, A attention heads, G key-value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basemodel.adapted_linear import AdaptedLinear
from basemodel.attach import AdapterSites
from basemodel.block_operands import block_operands, kernel_plan, packed_layers
from basemodel.changed_modules import ChangedVectors
from basemodel.fused_norm import ROUNDED, FusedNorm, norm_of
from basemodel.lora_ops import LoraPlan
from basemodel.trials import listen, near, trial_rows, trial_turn

ATTENTIONS = {
    f"{name}Attention" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Gemma", "Gemma2", "Gemma3")
}
Turn = tuple[torch.Tensor, torch.Tensor]
Norms = tuple[torch.Tensor | None, torch.Tensor | None]


class FusedAttention:
    """The inputs of an attention layer in one call, then the model's attention function and its output layer."""

    def __init__(self, module: nn.Module, layers: tuple[AdaptedLinear, ...], sites: AdapterSites) -> None:
        """`layers`: q, k, v, o. `options` is what the module gives its attention function besides the tensors."""
        self.options: dict[str, Any] = {}
        self.module = module
        self.layers = layers
        self._config: Any = module.config
        self._general = module.forward
        self._features = [layer.out_features for layer in layers[:3]]
        self._operands = block_operands(layers[:3])
        q_norm, k_norm = (norm_of(getattr(module, name, None)) for name in ("q_norm", "k_norm"))
        self.norm_kind = (q_norm.epsilon, q_norm.scaling) if q_norm else None
        self.norms: Norms = (q_norm.weight if q_norm else None, k_norm.weight if k_norm else None)
        self._sites = sites

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: object = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """As the module's own forward is called: hidden_states [1, T, H] -> [1, T, H]."""
        if position_embeddings is None or past_key_values is not None or hidden_states.dtype != torch.bfloat16:
            given = {"position_embeddings": position_embeddings, "attention_mask": attention_mask}
            return self._general(hidden_states, past_key_values=past_key_values, **given, **options)  # type: ignore[no-any-return]
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        inputs = self.inputs(rows, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS[self._config._attn_implementation]
        heads = [part.view(*hidden_states.shape[:-1], *part.shape[1:]).transpose(1, 2) for part in inputs]
        out, weights = attend(self.module, *heads, attention_mask, **self.options, **options)
        return self.layers[3](out.reshape(*hidden_states.shape[:-1], -1)), weights

    def inputs(
        self, rows: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, norm: FusedNorm | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, A, D], k and v [T, G, D] of rows [T, H], normed and rotated by cosines and sines [1, T, D].

        With `norm` (of this block's epsilon and scaling, where it has norms itself) the rows go through it first.
        """
        plan = self._sites.plan
        layers = self.layers[:3]
        kind = (norm.epsilon, norm.scaling) if norm is not None else self.norm_kind or (0.0, ROUNDED)
        if plan is not None and plan.changed is not None and not self.joins(plan):
            normed = rows if norm is None else norm(rows)
            q, k, v = (layer(normed) for layer in layers)
            self._rotate(q, k, (cosines, sines), kind, self._own_norms(plan))
            size = cosines.shape[-1]
            return q.view(len(rows), -1, size), k.view(len(rows), -1, size), v.view(len(rows), -1, size)
        weight, operands = None if norm is None else norm.weight, self._operands
        q, k, v = torch.ops.loraplex.attention_inputs(
            rows, operands, self._features, cosines, sines, weight, *self.norms, *kind, *kernel_plan(plan)
        )
        return q, k, v

    def joins(self, plan: LoraPlan) -> bool:
        """Whether the kernel adds all that this step's adapters change in q, k and v and their norms."""
        return not self._own_norms(plan) and all(layer.joins(plan) for layer in self.layers[:3])

    def _own_norms(self, plan: LoraPlan | None) -> dict[int, Norms]:
        """The norms of queries and keys of adapters that have their own in this step, by slot."""
        if plan is None or plan.changed is None or self.norms[0] is None:
            return {}
        modules = (self.module.q_norm, self.module.k_norm)
        own = [module.changes if isinstance(module, ChangedVectors) else {} for module in modules]
        return {
            slot: (
                own[0].get(slot, {}).get("weight", self.norms[0]),
                own[1].get(slot, {}).get("weight", self.norms[1]),
            )
            for slot in plan.changed.slots & (own[0].keys() | own[1].keys())
        }

    def _rotate(
        self, q: torch.Tensor, k: torch.Tensor, turn: Turn, kind: tuple[float, int], own_norms: dict[int, Norms]
    ) -> None:
        """Norm and rotate q and k [T, heads D] in place, each run of tokens by its own norms."""
        plan = self._sites.plan
        spans = plan.changed.spans if plan is not None and plan.changed is not None else ()
        begin = 0
        own = [(span, own_norms[slot]) for span, slot in spans if slot in own_norms]
        for span, norms in [*own, (slice(len(q), len(q)), self.norms)]:
            for part, each in ((slice(begin, span.start), self.norms), (span, norms)):
                if part.start < part.stop:
                    cosines, sines = (table[:, part].contiguous() for table in turn)
                    torch.ops.loraplex.rotate_heads(q[part], k[part], cosines, sines, *each, *kind)
            begin = span.stop


def fused_attention(module: nn.Module, sites: AdapterSites) -> FusedAttention | None:
    """What can stand in for this module, whose attention function is `listen`'s; None: it runs as it is."""
    if type(module).__name__ not in ATTENTIONS:
        return None
    layers = packed_layers(module, "q_proj", "k_proj", "v_proj", "o_proj")
    size = getattr(module, "head_dim", None)
    if layers is None or not isinstance(size, int) or any(layer.out_features % size for layer in layers[:3]):
        return None
    norms = [name for name in ("q_norm", "k_norm") if getattr(module, name, None) is not None]
    parts = [norm_of(getattr(module, name)) for name in norms]
    if len(parts) == 1 or any(part is None or part.weight.shape[0] != size for part in parts):
        return None
    if len(list(module.children())) != 4 + len(norms):
        return None
    block = FusedAttention(module, layers, sites)
    return block if _attention_agrees(module, block, layers[0].in_features, size) else None


def _attention_agrees(module: nn.Module, block: FusedAttention, features: int, size: int) -> bool:
    """Whether q, k, v are the module's own; learns the options that the module gives its attention function."""
    heard: list[tuple[list[torch.Tensor], dict[str, Any]]] = []
    listen(heard)
    x = trial_rows(features)[None]
    turn = trial_turn(x.shape[1], size)
    theirs = module(x, position_embeddings=turn, attention_mask=None)[0]
    block.options = heard[0][1]
    ours = block(x, position_embeddings=turn)[0]
    (their_parts, their_options), (our_parts, our_options) = heard
    return (
        their_options == our_options
        and near(ours, theirs)
        and all(near(our, their) for our, their in zip(our_parts, their_parts, strict=True))
    )
