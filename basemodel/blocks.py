"""Fused blocks of a decoder on the CPU kernels: norms, attention inputs (q, k, v, rotary embedding), gated MLPs.

It does: give modules of transformers whose computation it knows another `forward`, and only where a trial shows that
the new one computes what the module itself computes.
It does not: re-implement a model. The order of blocks, residuals, scales and attention itself stay transformers' own,
and every module that is not in the tables below, or fails its trial, runs as it is.

A fused block equals its parts by the bit (basemodel/kernels/block_operators.cpp). So a step in which a layer needs more
than the kernel adds (`AdaptedLinear.joins`) computes the parts, and its neighbours' logits do not change. Against
torch's own functions a value may differ by one rounding to bfloat16, because sums and exponentials differ in their last
bit (tests/basemodel/test_blocks.py).

Letters: T tokens, H hidden features, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basemodel.attach import AdaptedLinear, AdapterSites
from basemodel.changed_modules import ChangedVectors
from basemodel.lora_ops import LoraPlan

logger = logging.getLogger(__name__)

# How a norm scales, as row_math.h counts: rounds and multiplies by the weight, or multiplies by 1 + weight and rounds.
ROUNDED, ONE_PLUS = 0, 1
NORMS = {
    "LlamaRMSNorm": ROUNDED,
    "MistralRMSNorm": ROUNDED,
    "Qwen2RMSNorm": ROUNDED,
    "Qwen3RMSNorm": ROUNDED,
    "Phi3RMSNorm": ROUNDED,
    "GraniteRMSNorm": ROUNDED,
    "MixtralRMSNorm": ROUNDED,
    "GemmaRMSNorm": ONE_PLUS,
    "Gemma2RMSNorm": ONE_PLUS,
    "Gemma3RMSNorm": ONE_PLUS,
}
ATTENTIONS = {
    f"{name}Attention" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Gemma", "Gemma2", "Gemma3")
}
MLPS = {f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Gemma", "Gemma2", "Gemma3")}
ACTIVATIONS = {"SiLUActivation": 0, "SiLU": 0, "GELUTanh": 1}
TRIAL = "loraplex_trial"  # the name of the attention function that trials are heard through
TRIAL_SCALES = (1.0, 0.01, 20.0)  # of the rows of a trial: a wrong epsilon shows in small ones
# Of the norm of a trial's result: one value in ten that differs by a rounding, and no more.
TRIAL_TOLERANCE = 1e-3
Turn = tuple[torch.Tensor, torch.Tensor]
Norms = tuple[torch.Tensor | None, torch.Tensor | None]


def fused_block(module: nn.Module, sites: AdapterSites) -> FusedNorm | FusedMLP | FusedAttention | None:
    """What can stand in for this module of a model whose attention function is `listen`'s; None: it runs as it is."""
    return _fused_norm(module) or _fused_mlp(module, sites) or _fused_attention(module, sites)


# ------------------------------------------------------------------------------------------------------------- norms
@dataclass(frozen=True)
class FusedNorm:
    """An RMS norm in one pass. x [..., H] -> [..., H]. The weight is the module's at each call: it may be replaced."""

    module: nn.Module
    epsilon: float
    scaling: int
    general: Callable[..., torch.Tensor]

    @property
    def weight(self) -> torch.Tensor:
        """The norm's weight [H]."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm; in any other type than bfloat16 the module's own."""
        if hidden_states.dtype != torch.bfloat16:
            return self.general(hidden_states)
        weight = self.weight
        rows = hidden_states.reshape(-1, weight.shape[0]).contiguous()
        out: torch.Tensor = torch.ops.loraplex.rms_norm(rows, weight, self.epsilon, self.scaling)
        return out.view(hidden_states.shape)


def _norm_of(module: nn.Module | None) -> FusedNorm | None:
    """A norm's own parts, not tried yet."""
    scaling = NORMS.get(type(module).__name__)
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or scaling is None or not isinstance(weight, torch.Tensor) or not isinstance(epsilon, float):
        return None
    if weight.dim() != 1 or weight.dtype != torch.bfloat16:
        return None
    return FusedNorm(module, epsilon, scaling, module.forward)


def _fused_norm(module: nn.Module) -> FusedNorm | None:
    block = _norm_of(module)
    if block is None or not _agree(module, block, trial_rows(block.weight.shape[0])):
        return None
    return block


# -------------------------------------------------------------------------------------------------------------- MLPs
class FusedMLP:
    """down(activation(gate(x)) * up(x)) in one call, adapters included. x [..., H] -> [..., H]."""

    def __init__(
        self, layers: tuple[AdaptedLinear, AdaptedLinear, AdaptedLinear], activation: int, sites: AdapterSites
    ):
        """`layers`: gate, up, down."""
        self.layers = layers
        self.activation = activation
        self._features = [layer.out_features for layer in layers]
        self._sites = sites

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        plan = self._sites.plan
        gate, up, down = self.layers
        rows = x.reshape(-1, gate.in_features).contiguous()
        if not all(layer.joins(plan) for layer in self.layers):
            inner: torch.Tensor = torch.ops.loraplex.gate(gate(rows), up(rows), self.activation)
            own: torch.Tensor = down(inner)
            return own.view(x.shape)
        operands = [*gate.operands(plan), *up.operands(plan), *down.operands(plan)]
        out: torch.Tensor = torch.ops.loraplex.gated_mlp(
            rows, operands, self._features, self.activation, *kernel_plan(plan)
        )
        return out.view(x.shape)


def _fused_mlp(module: nn.Module, sites: AdapterSites) -> FusedMLP | None:
    if type(module).__name__ not in MLPS:
        return None
    layers = _layers(module, "gate_proj", "up_proj", "down_proj")
    activation = ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    if layers is None or activation is None or len(list(module.children())) != 4:
        return None
    block = FusedMLP((layers[0], layers[1], layers[2]), activation, sites)
    return block if _agree(module, block, trial_rows(layers[0].in_features)) else None


# --------------------------------------------------------------------------------------------------------- attention
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
        self._bare = [operand for layer in layers[:3] for operand in layer.operands(None)]
        q_norm, k_norm = (_norm_of(getattr(module, name, None)) for name in ("q_norm", "k_norm"))
        self.norm_kind = (q_norm.epsilon, q_norm.scaling) if q_norm else None
        self._norms = (q_norm.weight if q_norm else None, k_norm.weight if k_norm else None)
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
        own_norms = self._own_norms(plan)
        if own_norms or (plan is not None and not all(layer.joins(plan) for layer in layers)):
            normed = rows if norm is None else norm(rows)
            q, k, v = (layer(normed) for layer in layers)
            self._rotate(q, k, (cosines, sines), kind, own_norms)
            size = cosines.shape[-1]
            return q.view(len(rows), -1, size), k.view(len(rows), -1, size), v.view(len(rows), -1, size)
        operands = self._bare
        if plan is not None:
            operands = [operand for layer in layers for operand in layer.operands(plan)]
        weight = None if norm is None else norm.weight
        q, k, v = torch.ops.loraplex.attention_inputs(
            rows, operands, self._features, cosines, sines, weight, *self._norms, *kind, *kernel_plan(plan)
        )
        return q, k, v

    def _own_norms(self, plan: LoraPlan | None) -> dict[int, Norms]:
        """The norms of queries and keys of adapters that have their own in this step, by slot."""
        if plan is None or plan.changed is None or self._norms[0] is None:
            return {}
        modules = (self.module.q_norm, self.module.k_norm)
        own = [module.changes if isinstance(module, ChangedVectors) else {} for module in modules]
        return {
            slot: (
                own[0].get(slot, {}).get("weight", self._norms[0]),
                own[1].get(slot, {}).get("weight", self._norms[1]),
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
        for span, norms in [*own, (slice(len(q), len(q)), self._norms)]:
            for part, each in ((slice(begin, span.start), self._norms), (span, norms)):
                if part.start < part.stop:
                    cosines, sines = (table[:, part].contiguous() for table in turn)
                    torch.ops.loraplex.rotate_heads(q[part], k[part], cosines, sines, *each, *kind)
            begin = span.stop


def _fused_attention(module: nn.Module, sites: AdapterSites) -> FusedAttention | None:
    if type(module).__name__ not in ATTENTIONS:
        return None
    layers = _layers(module, "q_proj", "k_proj", "v_proj", "o_proj")
    size = getattr(module, "head_dim", None)
    if layers is None or not isinstance(size, int) or any(layer.out_features % size for layer in layers[:3]):
        return None
    norms = [name for name in ("q_norm", "k_norm") if getattr(module, name, None) is not None]
    parts = [_norm_of(getattr(module, name)) for name in norms]
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


# ------------------------------------------------------------------------------------------------------------ trials
def listen(heard: list[tuple[list[torch.Tensor], dict[str, Any]]]) -> str:
    """Registers, as TRIAL, an attention function that writes down what it is given and answers with the query."""

    def listening(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **options: Any
    ) -> tuple[torch.Tensor, None]:
        heard.append(([query.clone(), key.clone(), value.clone()], options))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(TRIAL, listening)
    return TRIAL


def _layers(module: nn.Module, *names: str) -> tuple[AdaptedLinear, ...] | None:
    """The named layers, if all of them run on the kernel."""
    found = [getattr(module, name, None) for name in names]
    layers = tuple(layer for layer in found if isinstance(layer, AdaptedLinear) and layer.is_packed)
    return layers if len(layers) == len(names) else None


def kernel_plan(plan: LoraPlan | None) -> tuple[list[torch.Tensor], int]:
    """The plan as a block gives it to the kernel: its tensors (none: no adapter), and the size of the scratch."""
    if plan is None or plan.runs is None:
        return [], 0
    return plan.runs.tensors, plan.runs.hidden_size


def trial_rows(features: int) -> torch.Tensor:
    """Rows [T, H] of sizes that differ."""
    generator = torch.Generator().manual_seed(features)
    rows = torch.randn(len(TRIAL_SCALES), features, generator=generator)
    return (rows * torch.tensor(TRIAL_SCALES)[:, None]).to(torch.bfloat16)


def trial_turn(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, T, D] of some angles."""
    angles = torch.rand(1, tokens, size // 2, generator=torch.Generator().manual_seed(size)).repeat(1, 1, 2) * 6
    return angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


def _agree(module: nn.Module, block: Callable[..., torch.Tensor], rows: torch.Tensor) -> bool:
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
