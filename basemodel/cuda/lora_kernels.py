"""The grouped LoRA product on a GPU: two Triton launches for a layer, or for all layers that share an input.

It does: h = x A for every part of every tile (`_shrink`), then out += weight * h B (`_expand`).
It does not: decide which token uses what (`tiles`). Real ranks are read, not the largest one. Sums run in a fixed
order (a tile's parts one after the other, the splits of a sum in their order, no atomics), so a token's result does not
depend on its neighbours. float32 is multiplied in three TF32 products: a single one, which is what Triton does if
nothing is said, keeps 10 bits.
What differs from step to step is only in the tables and the grid, never a number that a kernel is compiled for.
Run on the CPU with TRITON_INTERPRET=1 by the tests. Not yet run on a GPU.

Letters: T tokens, H input features, R rank rows, S slices (layers that share x: q, k, v), O output features of
all slices side by side, K parts.

    a [S, R, H]    one row of A is one stream      b [R, O]    slices side by side, as their outputs are
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from basemodel.cuda.library import OUTPUT_BLOCK
from basemodel.cuda.tiles import RANK_BLOCK, TILE_TOKENS
from basemodel.lora_ops import TileTable

INPUT_BLOCK = 128
MOST_SPLITS = 8
FEATURES_PER_SPLIT = 512


def add_lora_tiles(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, table: TileTable
) -> None:
    """Add each token's adapters to `out` [T, O] in place: x [T, H], a [S, R, H], b [R, O].

    `ends` [S] int32 says where each slice's outputs end; the last one is O, all others are multiples of OUTPUT_BLOCK.
    Rows of `x`, `out`, `a` and `b` are contiguous, and may lie apart.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    assert out.stride(1) == 1, "the output is written row by row"
    assert a.stride(2) == 1
    assert b.stride(1) == 1
    slices, _, in_features = a.shape
    splits = min(MOST_SPLITS, max(1, in_features // FEATURES_PER_SPLIT))
    parts = table.parts.shape[0]
    hidden = torch.empty(parts, splits, slices, TILE_TOKENS, RANK_BLOCK, dtype=torch.float32, device=x.device)
    _shrink[(parts, slices, splits)](
        x, a, hidden, table.members, table.tiles, table.parts,
        in_features, x.stride(0), a.stride(0), a.stride(1),
        SLICES=slices, SPLITS=splits, TILE=TILE_TOKENS, RANK=RANK_BLOCK, INPUT=INPUT_BLOCK,
    )  # fmt: skip
    _expand[(table.tiles.shape[0], triton.cdiv(out.shape[1], OUTPUT_BLOCK))](
        out, b, hidden, table.members, table.tiles, table.parts, table.weights, ends,
        out.shape[1], out.stride(0), b.stride(0),
        SLICES=slices, SPLITS=splits, TILE=TILE_TOKENS, RANK=RANK_BLOCK, OUTPUT=OUTPUT_BLOCK,
    )  # fmt: skip


@triton.jit
def _shrink(
    x, a, hidden, members, tiles, parts,
    in_features, x_stride, slice_stride, row_stride,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr, RANK: tl.constexpr, INPUT: tl.constexpr,
):  # fmt: skip
    """Program (part, slice, split): [TILE, INPUT] x [INPUT, RANK], over this split's inputs."""
    part = tl.program_id(0)
    slice_index = tl.program_id(1)
    split = tl.program_id(2)
    tile = tl.load(parts + part * 4)
    start = tl.load(parts + part * 4 + 1)
    ranks = tl.load(parts + part * 4 + 2)
    if ranks > 0:
        first = tl.load(tiles + tile * 4)
        tokens = tl.load(tiles + tile * 4 + 1)
        place = tl.arange(0, TILE)
        rank = tl.arange(0, RANK)
        feature = tl.arange(0, INPUT)
        token = tl.load(members + first + place, mask=place < tokens, other=0).to(tl.int64)
        rows = x + token[:, None] * x_stride
        factors = a + slice_index.to(tl.int64) * slice_stride + (start + rank).to(tl.int64)[None, :] * row_stride
        sums = tl.zeros((TILE, RANK), dtype=tl.float32)
        for begin in range(split * INPUT, in_features, SPLITS * INPUT):
            features = begin + feature
            inside = features < in_features
            left = tl.load(rows + features[None, :], mask=(place < tokens)[:, None] & inside[None, :], other=0.0)
            right = tl.load(factors + features[:, None], mask=(rank < ranks)[None, :] & inside[:, None], other=0.0)
            sums += tl.dot(left.to(right.dtype), right, input_precision="tf32x3")
        target = hidden + ((part * SPLITS + split) * SLICES + slice_index).to(tl.int64) * (TILE * RANK)
        tl.store(target + place[:, None] * RANK + rank[None, :], sums)


@triton.jit
def _expand(
    out, b, hidden, members, tiles, parts, weights, ends,
    out_features, out_stride, b_stride,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr, RANK: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Program (tile, block of outputs): the tile's parts one after the other, then one rounding."""
    tile = tl.program_id(0)
    tokens = tl.load(tiles + tile * 4 + 1)
    if tokens > 0:
        output = tl.program_id(1) * OUTPUT + tl.arange(0, OUTPUT)
        slice_index = tl.program_id(1) * 0
        for other in range(SLICES - 1):
            slice_index += (tl.program_id(1) * OUTPUT >= tl.load(ends + other)).to(tl.int32)
        first = tl.load(tiles + tile * 4)
        first_part = tl.load(tiles + tile * 4 + 2)
        count = tl.load(tiles + tile * 4 + 3)
        place = tl.arange(0, TILE)
        rank = tl.arange(0, RANK)
        inside = output < out_features
        sums = tl.zeros((TILE, OUTPUT), dtype=tl.float32)
        for part in range(first_part, first_part + count):
            start = tl.load(parts + part * 4 + 1)
            known = rank < tl.load(parts + part * 4 + 2)
            weight = tl.load(weights + part * TILE + place)
            values = tl.zeros((TILE, RANK), dtype=tl.float32)
            for split in range(SPLITS):
                source = hidden + ((part * SPLITS + split) * SLICES + slice_index).to(tl.int64) * (TILE * RANK)
                values += tl.load(source + place[:, None] * RANK + rank[None, :])
            factors = tl.load(
                b + (start + rank).to(tl.int64)[:, None] * b_stride + output[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            )
            delta = tl.dot(values.to(factors.dtype), factors, input_precision="tf32x3")
            # not a product with 0: an infinity of an adapter that a token has not chosen must not become its NaN
            sums += tl.where(weight[:, None] == 0, 0.0, weight[:, None] * delta)
        token = tl.load(members + first + place, mask=place < tokens, other=0).to(tl.int64)
        target = out + token[:, None] * out_stride + output[None, :]
        present = (place < tokens)[:, None] & inside[None, :]
        before = tl.load(target, mask=present, other=0.0).to(tl.float32)
        tl.store(target, (before + sums).to(out.dtype.element_ty), mask=present)
