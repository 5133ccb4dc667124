"""The grouped LoRA product on a GPU: two Triton launches for a layer, or for all layers that share an input.

It does: h = x A for every tile and adapter (`_shrink`), then out += weight * h B (`_expand`).
It does not: decide which token uses what (`tiles`). Real ranks are read, not the largest one. Sums run in a fixed
order (a tile's adapters one after the other, the parts of a split sum in their order, no atomics), so a token's result
does not depend on its neighbours.
Run on the CPU with TRITON_INTERPRET=1 by the tests. Not yet run on a GPU.

Letters: T tokens, H input features, R rank rows, S slices (layers that share x: q, k, v), O output features of
all slices side by side.

    a [S, R, H]    one row of A is one stream      b [R, O]    slices side by side, as their outputs are
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from basemodel.cuda.tiles import RANK_BLOCK, TILE_TOKENS
from basemodel.lora_ops import TileTable

INPUT_BLOCK = 128
OUTPUT_BLOCK = 64
MOST_SPLITS = 8
FEATURES_PER_SPLIT = 512


def add_lora_tiles(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, table: TileTable
) -> None:
    """Add each token's adapters to `out` [T, O] in place: x [T, H], a [S, R, H], b [R, O].

    `ends` [S] int32 says where each slice's outputs end; the last one is O, all others are multiples of OUTPUT_BLOCK.
    """
    slices, _, in_features = a.shape
    splits = min(MOST_SPLITS, max(1, in_features // FEATURES_PER_SPLIT))
    hidden = torch.empty(splits, slices, table.hidden_size, dtype=torch.float32, device=x.device)
    _shrink[(table.uses.shape[0], table.most_rank_blocks * slices, splits)](
        x, a, hidden, table.tiles, table.uses,
        in_features, x.stride(0), a.stride(0), slices, table.hidden_size, splits,
        TILE=TILE_TOKENS, RANK=RANK_BLOCK, INPUT=INPUT_BLOCK,
    )  # fmt: skip
    _expand[(table.tiles.shape[0], triton.cdiv(out.shape[1], OUTPUT_BLOCK))](
        out, b, hidden, table.tiles, table.uses, table.weights, ends,
        out.shape[1], out.stride(0), b.stride(0), slices, table.hidden_size, splits,
        TILE=TILE_TOKENS, RANK=RANK_BLOCK, OUTPUT=OUTPUT_BLOCK,
    )  # fmt: skip


@triton.jit
def _shrink(
    x, a, hidden, tiles, uses,
    in_features, x_stride, slice_stride, slices, hidden_size, splits,
    TILE: tl.constexpr, RANK: tl.constexpr, INPUT: tl.constexpr,
):  # fmt: skip
    """Program (use, rank block of a slice, split): [TILE, INPUT] x [INPUT, RANK], over this split's inputs."""
    use = tl.program_id(0)
    slice_index = tl.program_id(1) % slices
    block = tl.program_id(1) // slices
    split = tl.program_id(2)
    tile = tl.load(uses + use * 4)
    start = tl.load(uses + use * 4 + 1)
    rank = tl.load(uses + use * 4 + 2)
    place = tl.load(uses + use * 4 + 3)
    if block * RANK < rank:
        first = tl.load(tiles + tile * 4)
        tokens = tl.load(tiles + tile * 4 + 1)
        token = tl.arange(0, TILE)
        ranks = block * RANK + tl.arange(0, RANK)
        feature = tl.arange(0, INPUT)
        rows = x + (first + token)[:, None] * x_stride
        factors = a + slice_index * slice_stride + (start + ranks)[None, :].to(tl.int64) * in_features
        sums = tl.zeros((TILE, RANK), dtype=tl.float32)
        for begin in range(split * INPUT, in_features, splits * INPUT):
            features = begin + feature
            inside = features < in_features
            left = tl.load(rows + features[None, :], mask=(token < tokens)[:, None] & inside[None, :], other=0.0)
            right = tl.load(factors + features[:, None], mask=(ranks < rank)[None, :] & inside[:, None], other=0.0)
            sums += tl.dot(left.to(right.dtype), right)
        blocks = tl.cdiv(rank, RANK)
        target = hidden + (split * slices + slice_index).to(tl.int64) * hidden_size + place
        tl.store(target + token[:, None] * (blocks * RANK) + ranks[None, :], sums)


@triton.jit
def _expand(
    out, b, hidden, tiles, uses, weights, ends,
    out_features, out_stride, b_stride, slices, hidden_size, splits,
    TILE: tl.constexpr, RANK: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Program (tile, block of outputs): the tile's adapters one after the other, then one rounding."""
    tile = tl.program_id(0)
    output = tl.program_id(1) * OUTPUT + tl.arange(0, OUTPUT)
    slice_index = 0
    for other in range(slices - 1):
        slice_index += (tl.program_id(1) * OUTPUT >= tl.load(ends + other)).to(tl.int32)
    first = tl.load(tiles + tile * 4)
    tokens = tl.load(tiles + tile * 4 + 1)
    first_use = tl.load(tiles + tile * 4 + 2)
    count = tl.load(tiles + tile * 4 + 3)
    token = tl.arange(0, TILE)
    inside = output < out_features
    sums = tl.zeros((TILE, OUTPUT), dtype=tl.float32)
    for use in range(first_use, first_use + count):
        start = tl.load(uses + use * 4 + 1)
        rank = tl.load(uses + use * 4 + 2)
        place = tl.load(uses + use * 4 + 3)
        width = tl.cdiv(rank, RANK) * RANK
        weight = tl.load(weights + use * TILE + token)
        delta = tl.zeros((TILE, OUTPUT), dtype=tl.float32)
        for begin in range(0, rank, RANK):
            ranks = begin + tl.arange(0, RANK)
            known = ranks < rank
            values = tl.zeros((TILE, RANK), dtype=tl.float32)
            for split in range(splits):
                part = hidden + (split * slices + slice_index).to(tl.int64) * hidden_size + place
                values += tl.load(part + token[:, None] * width + ranks[None, :], mask=known[None, :], other=0.0)
            factors = tl.load(
                b + (start + ranks)[:, None].to(tl.int64) * b_stride + output[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            )
            delta += tl.dot(values.to(factors.dtype), factors)
        # not a product with 0: an infinity of an adapter that a token has not chosen must not become its NaN
        sums += tl.where(weight[:, None] == 0, 0.0, weight[:, None] * delta)
    target = out + (first + token)[:, None] * out_stride + output[None, :]
    present = (token < tokens)[:, None] & inside[None, :]
    before = tl.load(target, mask=present, other=0.0).to(tl.float32)
    tl.store(target, (before + sums).to(out.dtype.element_ty), mask=present)
