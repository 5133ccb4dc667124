"""The Triton kernels against the plain reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from basemodel.cuda.tiles import TILE_TOKENS, tile_table
from basemodel.lora_ops import add_lora_reference
from basemodel.lora_segment import Segment
from tests.basemodel.test_lora_ops import CASES, A, B, C

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
pytest.importorskip("triton")


from basemodel.cuda.lora_kernels import FEATURES_PER_SPLIT, OUTPUT_BLOCK, add_lora_tiles  # noqa: E402

# The interpreter computes with numpy, which has no bfloat16: the same code runs in it with float16.
DTYPES = [torch.float32, torch.bfloat16 if HAS_GPU else torch.float16]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_equal_the_reference(case: str, dtype: torch.dtype) -> None:
    agree(CASES[case], [96], dtype, in_features=160)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_that_share_an_input_and_split_sums(dtype: torch.dtype) -> None:
    agree(CASES["weights"], [2 * OUTPUT_BLOCK, OUTPUT_BLOCK, 40], dtype, in_features=2 * FEATURES_PER_SPLIT + 64)


def agree(segments: list[Segment], outputs: list[int], dtype: torch.dtype, *, in_features: int) -> None:
    out, expected, _ = product(segments, outputs, dtype, in_features)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert ((out.double() - expected).abs() <= tolerance * (1 + expected.abs())).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_gets_the_same_bits_beside_any_neighbours(dtype: torch.dtype) -> None:
    many = [Segment(1, (A,)), Segment(TILE_TOKENS + 1, (B, C)), Segment(2, ())]
    together, _, parts = product(many, [96], dtype, 160)
    x, start, a, b, ends = parts
    position = 0
    for segment in many:
        for token in {position, position + segment.tokens - 1}:
            alone = start[token : token + 1].clone()
            table = tile_table([Segment(1, segment.adapters)], DEVICE)
            if table is not None:
                add_lora_tiles(alone, x[token : token + 1], a, b, ends, table)
            assert torch.equal(alone[0], together[token])
        position += segment.tokens


def test_tokens_without_adapters_need_no_launch() -> None:
    assert tile_table([Segment(3, ()), Segment(0, (A,))], DEVICE) is None


def product(segments, outputs, dtype, in_features):
    """What the kernels make of `segments`, what the reference does, and the tensors."""
    tokens = sum(segment.tokens for segment in segments)
    torch.manual_seed(1)
    x = torch.randn(tokens, in_features).to(DEVICE, dtype)
    start = torch.randn(tokens, sum(outputs)).to(DEVICE, dtype)
    a = (torch.randn(len(outputs), 1024, in_features) / 12).to(DEVICE, dtype)
    b = torch.randn(1024, sum(outputs)).to(DEVICE, dtype) / 8
    ends = torch.tensor(outputs, dtype=torch.int32, device=DEVICE).cumsum(0).to(torch.int32)
    expected = start.double()
    begin = 0
    for slice_index, width in enumerate(outputs):
        columns = slice(begin, begin + width)
        part = expected[:, columns].clone()
        add_lora_reference(part, x.double(), a[slice_index].double().T, b[:, columns].double(), segments)
        expected[:, columns] = part
        begin += width
    out = start.clone()
    table = tile_table(segments, DEVICE)
    if table is not None:
        add_lora_tiles(out, x, a, b, ends, table)
    return out, expected, (x, start, a, b, ends)
