"""Attention over a paged KV cache, for every transformers decoder that uses `AttentionInterface`.

It does: keep keys and values of all requests in flat slots, and attend for a batch in which every request has its own
length. It does not: account for blocks (`kv_cache`) or build batches (`batch`).

Letters: T tokens of the step, N decoding rows, L cached positions, A attention heads, G key-value heads, D head size.
The batch is one row of T tokens: first N tokens that decode (one each), then the chunks of prompts, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from basemodel.cuda.library import paged_attention
from basemodel.fused_layer import PagedRows
from serving.engine.attention_step import AttentionStep, AttentionTiles, PromptSpan
from serving.engine.errors import UnsupportedModelError

NAME = "loraplex_paged"
# What model code passes and what has no influence here, besides what `attend` takes.
HARMLESS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position", "output_router_logits"}
)


# A layer's keys and values [slots, G, D], and whether the CPU kernel takes them.
Cache = tuple[torch.Tensor, torch.Tensor, bool]


class PagedAttention:
    """Keys and values of one model, and the step that its layers now work on. Only the runner sets `step`."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self.step: AttentionStep | None = None
        self._slots = slots
        self._model_name = type(model).__name__
        self._caches: dict[int, Cache] = {}
        self._all_for_kernel: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None  # once all layers have theirs
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.paged_attention = self  # type: ignore[assignment]  # nn.Module takes any attribute
        self._layers: int = model.config.get_text_config().num_hidden_layers
        AttentionInterface.register(NAME, _paged_attention)
        model.set_attn_implementation(NAME)

    @property
    def kv_bytes(self) -> int:
        """Memory taken by keys and values; 0 before the first step, which learns their shapes."""
        return sum(keys.nbytes + values.nbytes for keys, values, _ in self._caches.values())

    @property
    def is_on_cpu_kernels(self) -> bool:
        """Whether all layers' keys have a shape and type for the CPU kernel; their shapes are known after a step."""
        return all(is_for_kernel for _, _, is_for_kernel in self._caches.values())

    def attend(
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
        """Store the step's keys and values, and attend: query [1, A, T, D], key, value [1, G, T, D] -> [1, T, A, D]."""
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
        out = self.attend_rows(
            layer, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )
        return out.unsqueeze(0)

    def attend_rows(
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
        """The same for rows: query [T, A, D], key, value [T, G, D] -> [T, A, D]."""
        step = self.step
        assert step is not None, "PagedAttention.step must be set before a forward"
        keys, values, is_for_kernel = self._caches.get(layer) or self._new_cache(layer, query, key, value)
        if is_for_kernel and step.table is not None:  # all tokens at once, each over its positions in their order
            out: torch.Tensor = torch.ops.loraplex.paged_attention(
                query,
                keys,
                values,
                *step.table,
                query.shape[-1] ** -0.5 if scaling is None else scaling,
                sliding_window or 0,
                softcap or 0.0,
                key.contiguous(),
                value.contiguous(),
                step.write_slots,  # where these two go first
            )
            return out
        options = _Options(scaling, sliding_window, softcap)
        if step.write_slots is not None:
            keys.index_copy_(0, step.write_slots, key)
            values.index_copy_(0, step.write_slots, value)
        if step.tiles is not None:
            return _on_gpu(query, keys, values, step.tiles, options)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        if step.decode_slots is not None:
            rows = step.decode_slots.shape[0]
            out[:rows] = _decode(step, query[:rows], keys[step.decode_slots], values[step.decode_slots], options)
        for span in step.spans:
            past_key = key[span.tokens] if span.past == 0 or span.slots is None else keys[span.slots]
            past_value = value[span.tokens] if span.past == 0 or span.slots is None else values[span.slots]
            out[span.tokens] = _prefill(span, query[span.tokens], past_key, past_value, options)
        return out

    def paged_rows(self) -> PagedRows | None:
        """Where the present step's rows are, for who attends in all layers at once; None: that needs `attend_rows`.

        So it is until a first step has shown every layer's keys.
        """
        step = self.step
        if step is None or step.table is None or step.write_slots is None:
            return None
        if self._all_for_kernel is None:
            layers = [self._caches.get(layer) for layer in range(self._layers)]
            if not all(cache is not None and cache[2] for cache in layers):
                return None
            self._all_for_kernel = tuple((cache[0], cache[1]) for cache in layers if cache is not None)
        return PagedRows(self._all_for_kernel, *step.table, step.write_slots)

    def _new_cache(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Cache:
        """The layer's keys and values, made when the first step shows their shapes and types."""
        keys, values = (each.new_zeros(self._slots, *each.shape[1:]) for each in (key, value))
        self._caches[layer] = keys, values, _suits_kernel(query, keys, values)
        return self._caches[layer]

    def unsupported(self, names: list[str]) -> UnsupportedModelError:
        """The error for arguments that would change the result and are not known here."""
        return UnsupportedModelError(self._model_name, f"its attention uses {', '.join(sorted(names))}")


@dataclass(frozen=True)
class _Options:
    scaling: float | None
    window: int | None
    softcap: float | None


def _paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every attention layer. Unknown arguments are refused, not ignored."""
    paged = module.paged_attention
    assert isinstance(paged, PagedAttention)
    known = {name: options.pop(name, None) for name in ("scaling", "sliding_window", "softcap")}
    unknown = [name for name, given in options.items() if given is not None and name not in HARMLESS]
    if unknown:
        raise paged.unsupported(unknown)
    layer = module.layer_idx
    assert isinstance(layer, int)
    return paged.attend(layer, query, key, value, **known), None  # type: ignore[arg-type]  # transformers' own types


def _suits_kernel(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    return query.dtype == keys.dtype == torch.bfloat16 and query.shape[-1] % 32 == 0 and keys.shape == values.shape


def _on_gpu(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: AttentionTiles, options: _Options
) -> torch.Tensor:
    """The same in one launch; the step's keys and values are in the cache already: query [T, A, D] -> [T, A, D]."""
    return paged_attention(
        query.contiguous(),
        keys,
        values,
        table.blocks,
        table.tiles,
        block_tokens=table.block_tokens,
        scaling=options.scaling if options.scaling is not None else query.shape[-1] ** -0.5,
        window=options.window or 0,
        softcap=options.softcap or 0.0,
    )


def _decode(
    step: AttentionStep, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: _Options
) -> torch.Tensor:
    """One query per row: query [N, A, D], keys and values [N, L, G, D] -> [N, A, D].

    The heads that share a key-value head stand where a sequence would stand, so nothing is repeated.
    """
    rows, heads, size = query.shape
    groups = keys.shape[2]
    grouped = query.reshape(rows, groups, heads // groups, size)
    mask = step.masks.get(options.window)
    if mask is None:
        mask = step.masks[options.window] = _decode_mask(step, options.window)
    out = _attend(grouped, keys.transpose(1, 2), values.transpose(1, 2), mask, options)
    return out.reshape(rows, heads, -1)


def _decode_mask(step: AttentionStep, window: int | None) -> torch.Tensor:
    """True where a decoding row looks: [N, 1, 1, L]."""
    assert step.decode_slots is not None
    position = torch.arange(step.decode_slots.shape[1], device=step.decode_slots.device)
    length = step.decode_lengths[:, None]
    seen = position < length
    if window is not None:
        seen &= position >= length - window
    return seen[:, None, None, :]


def _prefill(
    span: PromptSpan, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: _Options
) -> torch.Tensor:
    """A chunk of one prompt: query [t, A, D], keys and values [past + t, G, D] -> [t, A, D]."""
    repeat = query.shape[1] // keys.shape[1]
    query, keys, values = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, keys, values))
    if repeat > 1:
        keys, values = keys.repeat_interleave(repeat, dim=1), values.repeat_interleave(repeat, dim=1)
    length = keys.shape[2]
    position = torch.arange(length, device=query.device)
    own = position[span.past :, None]
    seen = position <= own
    if options.window is not None:
        seen &= position > own - options.window
    return _attend(query, keys, values, seen, options)[0].transpose(0, 1)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, options: _Options
) -> torch.Tensor:
    """Scaled dot-product attention; with a soft cap on the scores it is written out, as in Gemma 2."""
    if options.softcap is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=options.scaling)
    scale = options.scaling if options.scaling is not None else query.shape[-1] ** -0.5
    scores = torch.tanh(query @ keys.transpose(-1, -2) * scale / options.softcap) * options.softcap
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.softmax(scores.float(), dim=-1).to(values.dtype) @ values
