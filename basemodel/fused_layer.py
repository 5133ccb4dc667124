"""A decoder layer on the CPU kernels in two calls around attention, made of blocks that are fused already.

It does: what a Llama or Gemma 2 decoder layer does with its norms, attention, MLP and residuals, by the arithmetic of
its blocks; a layer is fused only where a trial gives the same bits as transformers' own forward over those blocks.
It does not: know attention (`Fusion.attend` is the engine's) or layers with anything else in them: these stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from basemodel.adapted_linear import AdaptedLinear
from basemodel.attach import AdapterSites
from basemodel.block_operands import block_operands, kernel_plan
from basemodel.changed_modules import has_own
from basemodel.fused_attention import FusedAttention
from basemodel.fused_mlp import FusedMLP
from basemodel.fused_norm import FusedNorm
from basemodel.lora_ops import LoraPlan
from basemodel.trials import trial_rows, trial_turn

Turn = tuple[torch.Tensor, torch.Tensor]
PLAIN_NORMS = ("input_layernorm", "post_attention_layernorm")
SANDWICH_NORMS = (*PLAIN_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
# What an attention may be given besides tensors, here: `attend` takes the first three, the last changes nothing.
KNOWN_OPTIONS = {"scaling", "sliding_window", "softcap", "dropout"}


class RowAttention(Protocol):
    """Attention of one layer over the step's rows."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """query [T, A, D], key and value [T, G, D] -> [T, A, D]."""


Cache = tuple[torch.Tensor, torch.Tensor]  # a layer's keys and values [S, G, D], bf16


class PagedRows(NamedTuple):
    """Where the rows of a step lie in a cache, as the kernel reads it: all int64. `caches` are those of all layers, the
    same tuple as long as they are the same. `slots` of all requests, one after the other; `starts` [T] where each
    token's request begins there, `lengths` [T] how many positions it sees, `write_slots` [T] where its own keys go.
    """

    caches: tuple[Cache, ...]
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    write_slots: torch.Tensor


class Fusion:
    """What the fused layers of one model share. Who attaches attention sets `attend`; until then blocks run alone.

    `paged` says where the rows of the present step are, for who computes all layers at once; None: layer by layer.
    """

    def __init__(self) -> None:
        self.attend: RowAttention | None = None
        self.paged: Callable[[], PagedRows | None] | None = None
        self.blocks = 0
        self.layers = 0


class FusedLayer:
    """One decoder layer. hidden_states [1, T, H] -> [1, T, H]."""

    def __init__(self, module: nn.Module, norms: Mapping[str, Any], sites: AdapterSites, fusion: Fusion) -> None:
        """`norms` [FusedNorm] by their names in the module."""
        attention: Any = module.get_submodule("self_attn").forward
        mlp: Any = module.get_submodule("mlp").forward
        self._general: Callable[..., torch.Tensor] = module.forward
        self._module, self._norm_names = module, tuple(norms)
        self._attention: FusedAttention = attention
        self._layers = (self._attention.layers[3], *mlp.layers)
        self._features = [layer.out_features for layer in self._layers]
        self._activation: int = mlp.activation
        self._first: FusedNorm = norms["input_layernorm"]
        is_sandwich = "pre_feedforward_layernorm" in norms
        before = norms["pre_feedforward_layernorm" if is_sandwich else "post_attention_layernorm"]
        self._norms = (
            norms["post_attention_layernorm"].weight if is_sandwich else None,
            before.weight,
            norms["post_feedforward_layernorm"].weight if is_sandwich else None,
        )
        self.index = int(self._attention.module.layer_idx)
        options = self._attention.options
        self._options: dict[str, Any] = {name: options.get(name) for name in KNOWN_OPTIONS - {"dropout"}}
        self._operands = block_operands(self._layers)
        self._sites = sites
        self._fusion = fusion

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *arguments: Any,
        position_embeddings: Turn | None = None,
        past_key_values: object = None,
        **options: Any,
    ) -> torch.Tensor:
        """As the layer's own forward is called; where something is unusual, that one runs."""
        attend, plan = self._fusion.attend, self._sites.plan
        if (
            attend is None
            or arguments
            or position_embeddings is None
            or past_key_values is not None
            or hidden_states.dtype != torch.bfloat16
            or (plan is not None and plan.changed is not None and not self._joins_behind_attention(plan))
        ):
            given = {"position_embeddings": position_embeddings, "past_key_values": past_key_values}
            return self._general(hidden_states, *arguments, **given, **options)
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        query, key, value = self._attention.inputs(rows, *position_embeddings, norm=self._first)
        attended = attend(self.index, query, key, value, **self._options)
        out: torch.Tensor = torch.ops.loraplex.after_attention(
            rows,
            attended.view(rows.shape[0], -1),
            self._operands,
            self._features,
            *self._norms,
            self._first.epsilon,
            self._first.scaling,
            self._activation,
            *kernel_plan(plan),
        )
        return out.view(hidden_states.shape)

    @property
    def linears(self) -> tuple[AdaptedLinear, ...]:
        """q, k, v, o, gate, up, down."""
        return (*self._attention.layers[:3], *self._layers)

    @property
    def head_size(self) -> int:
        """Features of a head."""
        size: int = self._attention.module.head_dim  # type: ignore[assignment]  # nn.Module may have any attribute
        return size

    def joins(self, plan: LoraPlan) -> bool:
        """Whether the kernel adds all that this step's adapters change in this layer besides."""
        return self._attention.joins(plan) and self._joins_behind_attention(plan)

    def for_decoder(self) -> tuple[Any, ...]:
        """This layer as the kernel of all layers takes it (kernels/decoder.cpp: add_layer)."""
        linears = block_operands(self.linears)
        norms = [self._first.weight, *self._attention.norms, *self._norms]
        scaling, window, softcap = (self._options[name] for name in ("scaling", "sliding_window", "softcap"))
        attention = (self.head_size**-0.5 if scaling is None else scaling, window or 0, softcap or 0.0)
        features = [layer.out_features for layer in self.linears]
        return linears, features, norms, self._first.epsilon, self._first.scaling, self._activation, *attention

    def _joins_behind_attention(self, plan: LoraPlan) -> bool:
        """The same without q, k, v and their norms; norms of an adapter's own the kernel does not add."""
        own_norms = any(has_own(getattr(self._module, name), plan.changed) for name in self._norm_names)
        return not own_norms and all(layer.joins(plan) for layer in self._layers)


def fused_layer(module: nn.Module, sites: AdapterSites, fusion: Fusion) -> FusedLayer | None:
    """What can stand in for this decoder layer, whose blocks are fused; None: it runs as it is.

    The model's attention function must be a trial's (`trials.listen`), which answers with the query.
    """
    if not type(module).__name__.endswith("DecoderLayer"):
        return None
    parts = dict(module.named_children())
    names = [name for name in parts if name not in {"self_attn", "mlp"}]
    attention, mlp = (getattr(parts.get(name), "forward", None) for name in ("self_attn", "mlp"))
    norms = {name: parts[name].forward for name in names}
    if not isinstance(attention, FusedAttention) or not isinstance(mlp, FusedMLP):
        return None
    if sorted(names) not in (sorted(PLAIN_NORMS), sorted(SANDWICH_NORMS)):
        return None
    kinds = {(norm.epsilon, norm.scaling) if isinstance(norm, FusedNorm) else None for norm in norms.values()}
    kinds |= {attention.norm_kind} if attention.norm_kind else set()
    given = {name for name, value in attention.options.items() if value is not None}
    if len(kinds) != 1 or None in kinds or given - KNOWN_OPTIONS or not isinstance(attention.module.layer_idx, int):
        return None
    block = FusedLayer(module, norms, sites, fusion)
    return block if _gives_the_same_bits(module, block, fusion, attention) else None


def _gives_the_same_bits(module: nn.Module, block: FusedLayer, fusion: Fusion, attention: FusedAttention) -> bool:
    x = trial_rows(attention.layers[0].in_features)[None]
    turn = trial_turn(x.shape[1], block.head_size)
    theirs = module(x, position_embeddings=turn, attention_mask=None)
    fusion.attend = lambda layer, query, key, value, **options: query
    ours = block(x, position_embeddings=turn, attention_mask=None)
    fusion.attend = None
    return isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs)
