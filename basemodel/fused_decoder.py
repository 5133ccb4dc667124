"""All fused layers of a model in one call of the CPU kernels, over a paged KV cache.

It does: hand the layers to the kernel once, caches when they change, and a step's rows in one call; only where a trial
gives the same bits as layer after layer.
It does not: know a step in which a layer needs more than the kernel adds, or whose tokens have no place in a cache: the
layers are called one after the other then, to the same bits.

Letters: T tokens, H hidden features, S slots of the cache, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from basemodel.attach import AdapterSites
from basemodel.block_operands import kernel_plan
from basemodel.fused_layer import Cache, FusedLayer, Fusion, PagedRows
from basemodel.rotary_table import Turns
from basemodel.trials import trial_rows, trial_turn

HEAD_STEP = 32  # the kernel's attention takes heads of a multiple of it


class FusedDecoder:
    """The layers of one model. Only the engine loop calls it."""

    def __init__(self, layers: Sequence[FusedLayer], sites: AdapterSites, fusion: Fusion) -> None:
        """`layers` in their order, each the one whose cache has its number."""
        self._layers = tuple(layers)
        self._sites = sites
        self._fusion = fusion
        self._kernel: Any = torch.classes.loraplex.Decoder()
        for layer in layers:
            self._kernel.add_layer(*layer.for_decoder())
        self._caches_given: tuple[Cache, ...] | None = None

    def __call__(self, hidden: torch.Tensor, turns: Turns) -> torch.Tensor | None:
        """hidden [1, T, H] -> the same behind the last layer; None where this step must go layer by layer."""
        plan, paged = self._sites.plan, self._fusion.paged
        step = None if paged is None else paged()
        if step is None or hidden.dtype != torch.bfloat16:
            return None
        if plan is not None and plan.changed is not None and not all(layer.joins(plan) for layer in self._layers):
            return None
        if step.caches is not self._caches_given:
            self._caches_given = step.caches
            self._kernel.set_caches([keys for keys, _ in step.caches], [values for _, values in step.caches])
        out: torch.Tensor = torch.ops.loraplex.decode(
            hidden[0].contiguous(),
            self._kernel,
            *turns,
            step.slots,
            step.starts,
            step.lengths,
            step.write_slots,
            *kernel_plan(plan),
        )
        return out[None]


def fused_decoder(layers: Sequence[FusedLayer], sites: AdapterSites, fusion: Fusion) -> FusedDecoder | None:
    """What can stand in for these layers, one after the other; None: they are called."""
    in_order = [layer.index for layer in layers] == list(range(len(layers)))
    if not in_order or any(layer.head_size % HEAD_STEP for layer in layers):
        return None
    found = FusedDecoder(layers, sites, fusion)
    return found if _gives_the_same_bits(found, layers, fusion) else None


def _gives_the_same_bits(decoder: FusedDecoder, layers: Sequence[FusedLayer], fusion: Fusion) -> bool:
    x = trial_rows(layers[0].linears[0].in_features)[None]
    tokens, size = x.shape[1], layers[0].head_size
    cosines, sines = trial_turn(tokens, size)
    ours, theirs = _trial_step(layers, tokens), _trial_step(layers, tokens)

    def attend(
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        table = (theirs.slots, theirs.starts, theirs.lengths)
        scale = size**-0.5 if scaling is None else scaling
        how = (scale, sliding_window or 0, softcap or 0.0)
        out: torch.Tensor = torch.ops.loraplex.paged_attention(
            query, *theirs.caches[layer], *table, *how, key, value, theirs.write_slots
        )
        return out

    fusion.attend, fusion.paged = attend, lambda: ours
    try:
        expected = x
        for layer in layers:
            expected = layer(expected, position_embeddings=(cosines, sines), attention_mask=None)
        found = decoder(x, Turns(cosines[0], sines[0], None))
    finally:
        fusion.attend = fusion.paged = None
    pairs = [
        (one, other) for each in zip(ours.caches, theirs.caches, strict=True) for one, other in zip(*each, strict=True)
    ]
    return found is not None and all(torch.equal(one, other) for one, other in [(found, expected), *pairs])


def _trial_step(layers: Sequence[FusedLayer], tokens: int) -> PagedRows:
    """A prompt of so many tokens in caches of their own."""
    caches = tuple(
        (torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16))
        for shape in ((tokens, layer.linears[1].out_features // layer.head_size, layer.head_size) for layer in layers)
    )
    places = torch.arange(tokens)
    return PagedRows(caches, places, torch.zeros_like(places), places + 1, places)
