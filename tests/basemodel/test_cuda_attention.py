"""The Triton attention kernel against attention written out in float64, over scattered slots."""

from __future__ import annotations

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPE = torch.bfloat16 if HAS_GPU else torch.float16  # the interpreter computes with numpy, which has no bfloat16
pytest.importorskip("triton")


from basemodel.cuda.attention_kernel import paged_attention  # noqa: E402
from basemodel.cuda.tiles import TILE_TOKENS  # noqa: E402
from tests.basemodel.test_paged_attention import SLOTS, attention_in_float64  # noqa: E402

BLOCK_TOKENS = 16
REQUESTS = {1: 1, 2: 1, 65: 1, 130: 21}
"""Cached positions of each request, and how many of its tokens are in this step."""


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 5.0)])
@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 4, 32), (14, 2, 64), (3, 1, 80), (20, 2, 128), (2, 1, 8)])
def test_it_is_attention(heads: int, shared: int, size: int, window: int, softcap: float) -> None:
    query, keys, values, blocks, slots = tensors(heads, shared, size)
    tiles, seen = layout()
    options = {"scaling": size**-0.5, "window": window, "softcap": softcap, "block_tokens": BLOCK_TOKENS}
    out = paged_attention(query, keys, values, blocks, tiles, **options)
    for token, (begin, length) in enumerate(seen):
        looked = slots[begin + (max(0, length - window) if window else 0) : begin + length].long()
        expected = attention_in_float64(query[token], keys[looked], values[looked], size**-0.5, softcap)
        error = (out[token].double() - expected).abs().max()
        assert error <= 2**-8 * expected.abs().max() + 1e-3, (token, length)


@pytest.mark.parametrize("window", [0, 20])
def test_a_token_gets_the_same_bits_alone_and_in_a_tile(window: int) -> None:
    query, keys, values, blocks, _ = tensors(4, 2, 32)
    tiles, seen = layout()
    options = {"scaling": 0.2, "window": window, "softcap": 0.0, "block_tokens": BLOCK_TOKENS}
    together = paged_attention(query, keys, values, blocks, tiles, **options)
    for token in (0, 3, 3 + TILE_TOKENS, len(seen) - 1):
        begin, length = seen[token]
        tile = torch.tensor([[0, 1, begin // BLOCK_TOKENS, length]], dtype=torch.int32, device=DEVICE)
        alone = paged_attention(query[token : token + 1], keys, values, blocks, tile, **options)
        assert torch.equal(alone[0], together[token])


def test_a_tile_without_tokens_writes_nothing() -> None:
    query, keys, values, blocks, _ = tensors(4, 2, 32)
    tiles = torch.tensor([[0, 1, 0, 3], [0, 0, 0, 0]], dtype=torch.int32, device=DEVICE)
    options = {"scaling": 0.2, "window": 0, "softcap": 0.0, "block_tokens": BLOCK_TOKENS}
    out = paged_attention(query[:1], keys, values, blocks, tiles, **options)
    assert torch.equal(out, paged_attention(query[:1], keys, values, blocks, tiles[:1], **options))


def tensors(heads: int, shared: int, size: int):
    torch.manual_seed(heads * size)
    keys, values = (torch.randn(SLOTS, shared, size).to(DEVICE, DTYPE) for _ in range(2))
    owned = torch.randperm(SLOTS // BLOCK_TOKENS)[: sum(map(blocks_of, REQUESTS))]
    slots = (owned[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).ravel()
    query = (3 * torch.randn(sum(REQUESTS.values()), heads, size)).to(DEVICE, DTYPE)
    return query, keys, values, owned.to(DEVICE, torch.int32), slots.to(DEVICE)


def blocks_of(positions: int) -> int:
    return -(-positions // BLOCK_TOKENS)


def layout():
    """The tiles [N, 4]; and of each token where its request's slots begin, and how many positions it sees."""
    tiles, seen, begin = [], [], 0
    for positions, count in REQUESTS.items():
        tiles += [
            (len(seen) + first, min(TILE_TOKENS, count - first), begin // BLOCK_TOKENS, positions - count + 1 + first)
            for first in range(0, count, TILE_TOKENS)
        ]
        seen += [(begin, positions - count + 1 + index) for index in range(count)]
        begin += blocks_of(positions) * BLOCK_TOKENS
    return torch.tensor(tiles, dtype=torch.int32, device=DEVICE), seen
