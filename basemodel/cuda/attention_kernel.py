"""Attention over a paged KV cache on a GPU: one Triton launch for decoding rows and prompts alike.

It does: let each token attend to the cached positions of its own request, in their order, with grouped heads, a
sliding window and a soft cap where the model has them.
It does not: write keys and values (`serving.engine.attention`) or know blocks. The tile's shape is the same for one
token as for sixteen and nothing is split by the length of others, so a token's sums run in one order.
Run on the CPU with TRITON_INTERPRET=1 by the tests. Not yet run on a GPU.

Letters: T tokens, N tiles, P cached positions of all requests, A attention heads, G key-value heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from basemodel.cuda.tiles import TILE_TOKENS

POSITION_BLOCK = 64


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    tiles: torch.Tensor,
    *,
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """query [T, A, D], keys and values [slots, G, D] -> [T, A, D].

    `slots` [P] int32 are the cached positions of all requests, one after the other. `tiles` [N, 4] int32: first token,
    tokens (at most TILE_TOKENS, all of one request), where the request begins in `slots`, and how many positions the
    first token sees; each further one sees one more. `window` 0 and `softcap` 0 mean none.
    """
    _, heads, size = query.shape
    groups = keys.shape[1]
    out = torch.empty_like(query)
    _attend[(tiles.shape[0], groups)](
        query, keys, values, out, slots, tiles,
        scaling, window, softcap,
        query.stride(0), keys.stride(0), size,
        SHARED=heads // groups, ROWS=TILE_TOKENS * triton.next_power_of_2(heads // groups),
        SIZE=triton.next_power_of_2(size), POSITIONS=POSITION_BLOCK,
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    query, keys, values, out, slots, tiles,
    scaling, window, softcap,
    token_stride, slot_stride, size,
    SHARED: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Program (tile, key-value head). A row is one token and one of the SHARED heads that read this key-value head."""
    tile = tl.program_id(0)
    group = tl.program_id(1)
    first = tl.load(tiles + tile * 4)
    tokens = tl.load(tiles + tile * 4 + 1)
    begin = tl.load(tiles + tile * 4 + 2)
    seen_first = tl.load(tiles + tile * 4 + 3)
    row = tl.arange(0, ROWS)
    token = row // SHARED
    feature = tl.arange(0, SIZE)
    present = token < tokens
    real = feature < size
    place = (first + token).to(tl.int64)[:, None] * token_stride + (group * SHARED + row % SHARED)[:, None] * size
    q = tl.load(query + place + feature[None, :], mask=present[:, None] & real[None, :], other=0.0)
    seen = seen_first + token
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, SIZE), dtype=tl.float32)
    for start in range(0, seen_first + tokens - 1, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        cached = position < seen_first + tokens - 1
        slot = tl.load(slots + begin + position, mask=cached, other=0).to(tl.int64)
        at = slot[:, None] * slot_stride + group * size + feature[None, :]
        inside = cached[:, None] & real[None, :]
        key = tl.load(keys + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(key)) * scaling
        if softcap > 0:
            scores = softcap * (2 / (1 + tl.exp(-2 * scores / softcap)) - 1)
        looks = present[:, None] & (position[None, :] < seen[:, None])
        if window > 0:
            looks = looks & (position[None, :] >= seen[:, None] - window)
        scores = tl.where(looks, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        keep = tl.exp(top - base)
        total = total * keep + tl.sum(weights, 1)
        value = tl.load(values + at, mask=inside, other=0.0)
        sums = sums * keep[:, None] + tl.dot(weights.to(value.dtype), value)
        top = higher
    result = sums / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + place + feature[None, :], result.to(out.dtype.element_ty), mask=present[:, None] & real[None, :])
