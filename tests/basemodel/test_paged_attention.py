"""The attention kernel against attention written out in float64, over scattered slots."""

from __future__ import annotations

import pytest
import torch

from basemodel.kernels.library import has_cpu_kernels

pytestmark = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
SLOTS = 400


def attention_in_float64(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, softcap: float
) -> torch.Tensor:
    """query [A, D], keys and values [L, G, D] -> [A, D]."""
    sharing = query.shape[0] // keys.shape[1]
    keys, values = (tensor.double().repeat_interleave(sharing, dim=1) for tensor in (keys, values))
    scores = torch.einsum("ad,lad->al", query.double(), keys) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("al,lad->ad", torch.softmax(scores, dim=-1), values)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 5.0), (1, 0.0)])
@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 4, 32), (8, 1, 64), (14, 2, 64), (6, 2, 96), (10, 1, 128)])
def test_it_is_attention(heads: int, shared: int, size: int, window: int, softcap: float) -> None:
    torch.manual_seed(heads * size + window)
    requests = [1, 2, 16, 17, 65, 130]  # positions of each; the last one has several tokens in this step
    tokens_of_last = 40
    keys, values = (torch.randn(SLOTS, shared, size).to(torch.bfloat16) for _ in range(2))
    places = torch.randperm(SLOTS)
    starts, lengths, begin = [], [], 0
    for index, positions in enumerate(requests):
        count = tokens_of_last if index == len(requests) - 1 else 1
        starts += [begin] * count
        lengths += range(positions - count + 1, positions + 1)
        begin += positions
    slots = places[:begin]
    query = (3 * torch.randn(len(starts), heads, size)).to(torch.bfloat16)
    scaling = size**-0.5
    table = (slots, torch.tensor(starts), torch.tensor(lengths))
    out = torch.ops.loraplex.paged_attention(query, keys, values, *table, scaling, window, softcap)
    for token, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        seen = slots[start + (max(0, length - window) if window else 0) : start + length]
        expected = attention_in_float64(query[token], keys[seen], values[seen], scaling, softcap)
        error = (out[token].double() - expected).abs().max()
        assert error <= 2**-8 * expected.abs().max() + 1e-3, (token, length)


def test_very_unequal_scores_stay_finite() -> None:
    query = torch.full((1, 1, 32), 30.0).to(torch.bfloat16)
    keys = torch.zeros(3, 1, 32).to(torch.bfloat16)
    keys[1] = 30.0
    keys[2] = -30.0
    values = torch.tensor([1.0, 2.0, 3.0]).to(torch.bfloat16)[:, None, None].expand(3, 1, 32).contiguous()
    table = (torch.arange(3), torch.tensor([0]), torch.tensor([3]))
    out = torch.ops.loraplex.paged_attention(query, keys, values, *table, 1.0, 0, 0.0)
    assert torch.equal(out, torch.full((1, 1, 32), 2.0).to(torch.bfloat16))
