"""Attention over a paged KV cache on a GPU: one Triton launch for decoding rows and prompts alike.

It does: let each token attend to the cached positions of its own request, in their order, with grouped heads, a
sliding window and a soft cap where the model has them.
It does not: write keys and values (`serving.engine.attention`) or know who owns a block. The tile's shape is the same
for one token as for sixteen and nothing is split by the length of others, so a token's sums run in one order.
Run on the CPU with TRITON_INTERPRET=1 by the tests. Not yet run on a GPU.

Letters: T tokens, N tiles, P entries of all requests' block tables, A attention heads, G key-value heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from basemodel.cuda.tiles import TILE_TOKENS

POSITION_BLOCK = 64
TILE_VALUES = 8192
"""Most sums (rows x head size) of a program: four heads of 128. More of them would not stay in registers."""
LEAST_SIZE = 16
"""The fewest features that a tensor core adds up at once."""


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: torch.Tensor,
    tiles: torch.Tensor,
    *,
    block_tokens: int,
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """query [T, A, D], keys and values [blocks * block_tokens, G, D] -> [T, A, D].

    `blocks` [P] int32 are the block tables of all requests, one after the other. `tiles` [N, 4] int32: first token,
    tokens (at most TILE_TOKENS, all of one request), where the request's table begins in `blocks`, and how many
    positions the first token sees; each further one sees one more. `window` 0 and `softcap` 0 mean none.
    """
    assert query.is_contiguous()
    assert keys.stride() == values.stride(), "keys and values lie alike"
    _, heads, size = query.shape
    groups = keys.shape[1]
    shared, padded_size = heads // groups, max(LEAST_SIZE, triton.next_power_of_2(size))
    at_once = min(shared, max(1, TILE_VALUES // (TILE_TOKENS * padded_size)))
    out = torch.empty_like(query)
    _attend[(tiles.shape[0], groups, triton.cdiv(shared, at_once))](
        query, keys, values, out, blocks, tiles,
        scaling, window, softcap,
        query.stride(0), keys.stride(0), size,
        SHARED=shared, AT_ONCE=at_once, ROWS=triton.next_power_of_2(TILE_TOKENS * at_once), SIZE=padded_size,
        POSITIONS=POSITION_BLOCK, BLOCK=block_tokens, HAS_WINDOW=window > 0, HAS_CAP=softcap > 0,
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    query, keys, values, out, blocks, tiles,
    scaling, window, softcap,
    token_stride, slot_stride, size,
    SHARED: tl.constexpr, AT_ONCE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    POSITIONS: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """Program (tile, key-value head, some of the SHARED heads that read it). A row is one token and one such head."""
    tile = tl.program_id(0)
    group = tl.program_id(1)
    first = tl.load(tiles + tile * 4)
    tokens = tl.load(tiles + tile * 4 + 1)
    begin = tl.load(tiles + tile * 4 + 2)
    seen_first = tl.load(tiles + tile * 4 + 3)
    row = tl.arange(0, ROWS)
    token = row // AT_ONCE
    head = tl.program_id(2) * AT_ONCE + row % AT_ONCE
    feature = tl.arange(0, SIZE)
    present = (token < tokens) & (head < SHARED)
    real = feature < size
    place = (first + token).to(tl.int64)[:, None] * token_stride + (group * SHARED + head)[:, None] * size
    q = tl.load(query + place + feature[None, :], mask=present[:, None] & real[None, :], other=0.0)
    seen = seen_first + token
    last = seen_first + tokens - 1
    oldest = 0
    if HAS_WINDOW:  # in whole blocks of positions: where a token's sums begin does not depend on its tile
        oldest = tl.maximum(seen_first - window, 0) // POSITIONS * POSITIONS
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, SIZE), dtype=tl.float32)
    for start in range(oldest, last, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        cached = position < last
        block = tl.load(blocks + begin + position // BLOCK, mask=cached, other=0).to(tl.int64)
        slot = block * BLOCK + position % BLOCK
        at = slot[:, None] * slot_stride + group * size + feature[None, :]
        inside = cached[:, None] & real[None, :]
        key = tl.load(keys + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(key), input_precision="tf32x3") * scaling
        if HAS_CAP:
            scores = softcap * (2 / (1 + tl.exp(-2 * scores / softcap)) - 1)
        looks = present[:, None] & (position[None, :] < seen[:, None])
        if HAS_WINDOW:
            looks = looks & (position[None, :] >= seen[:, None] - window)
        scores = tl.where(looks, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        keep = tl.exp(top - base)
        total = total * keep + tl.sum(weights, 1)
        value = tl.load(values + at, mask=inside, other=0.0)
        sums = sums * keep[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
        top = higher
    result = sums / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + place + feature[None, :], result.to(out.dtype.element_ty), mask=present[:, None] & real[None, :])
