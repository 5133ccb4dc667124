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

REQUESTS = {1: 1, 2: 1, 65: 1, 130: 21}
"""Cached positions of each request, and how many of its tokens are in this step."""


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 5.0)])
@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 4, 32), (14, 2, 64), (3, 1, 80)])
def test_it_is_attention(heads: int, shared: int, size: int, window: int, softcap: float) -> None:
    query, keys, values, slots = tensors(heads, shared, size)
    tiles, seen = layout()
    options = {"scaling": size**-0.5, "window": window, "softcap": softcap}
    out = paged_attention(query, keys, values, slots, tiles, **options)
    for token, (begin, length) in enumerate(seen):
        looked = slots[begin + (max(0, length - window) if window else 0) : begin + length].long()
        expected = attention_in_float64(query[token], keys[looked], values[looked], size**-0.5, softcap)
        error = (out[token].double() - expected).abs().max()
        assert error <= 2**-8 * expected.abs().max() + 1e-3, (token, length)


def test_a_token_gets_the_same_bits_alone_and_in_a_tile() -> None:
    query, keys, values, slots = tensors(4, 2, 32)
    tiles, seen = layout()
    options = {"scaling": 0.2, "window": 0, "softcap": 0.0}
    together = paged_attention(query, keys, values, slots, tiles, **options)
    for token in (0, 3, 3 + TILE_TOKENS, len(seen) - 1):
        begin, length = seen[token]
        tile = torch.tensor([[0, 1, begin, length]], dtype=torch.int32, device=DEVICE)
        alone = paged_attention(query[token : token + 1], keys, values, slots, tile, **options)
        assert torch.equal(alone[0], together[token])


def tensors(heads: int, shared: int, size: int):
    torch.manual_seed(heads * size)
    keys, values = (torch.randn(SLOTS, shared, size).to(DEVICE, DTYPE) for _ in range(2))
    slots = torch.randperm(SLOTS)[: sum(REQUESTS)].to(DEVICE, torch.int32)
    query = (3 * torch.randn(sum(REQUESTS.values()), heads, size)).to(DEVICE, DTYPE)
    return query, keys, values, slots


def layout():
    """The tiles [N, 4], and where each token's request begins and how many positions the token sees."""
    tiles, seen, begin = [], [], 0
    for positions, count in REQUESTS.items():
        tiles += [
            (len(seen) + first, min(TILE_TOKENS, count - first), begin, positions - count + 1 + first)
            for first in range(0, count, TILE_TOKENS)
        ]
        seen += [(begin, positions - count + 1 + index) for index in range(count)]
        begin += positions
    return torch.tensor(tiles, dtype=torch.int32, device=DEVICE), seen
