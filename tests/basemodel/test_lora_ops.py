"""The grouped product against its plain reference, over the awkward cases."""

from __future__ import annotations

import pytest
import torch

from basemodel.lora_groups import OWN_GROUP_TOKENS
from basemodel.lora_ops import add_lora, add_lora_reference, plan_lora
from basemodel.lora_segment import Choice, RankRows, Segment

A, B, C = RankRows(0, 4), RankRows(4, 16), RankRows(40, 1)
LONG = OWN_GROUP_TOKENS + 5


def routed(tokens: int, adapters: tuple[RankRows, ...], k: int) -> Segment:
    """A segment whose tokens each use k of the adapters, with weights of their own."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, len(adapters), generator=generator)
    best = torch.softmax(scores, 1).topk(k, dim=1)
    return Segment(tokens, adapters, Choice(best.indices.numpy(), best.values.numpy()))


CASES = {
    "no tokens": [],
    "all base": [Segment(3, ()), Segment(1, ())],
    "one row": [Segment(1, (B,))],
    "one adapter on every row": [Segment(1, (A,))] * 5,
    "different adapters": [Segment(1, (A,)), Segment(1, (B,)), Segment(1, (C,))],
    "base between adapters": [Segment(1, ()), Segment(1, (B,)), Segment(2, ()), Segment(1, (A,))],
    "far apart, so in two windows": [Segment(1, (A,)), Segment(1, (RankRows(900, 2),))],
    "far apart on one token": [Segment(2, (A, RankRows(900, 2, 0.5)))],
    "a long prompt alone": [Segment(LONG, (B,))],
    "a long prompt between decoding rows": [Segment(1, (A,)), Segment(1, (C,)), Segment(LONG, (B,)), Segment(3, (A,))],
    "a long prompt of the base": [Segment(1, (A,)), Segment(LONG, ())],
    "weights": [Segment(2, (RankRows(0, 4, 0.5), RankRows(4, 16, -2.0))), Segment(1, (A,))],
    "a long weighted prompt": [Segment(LONG, (RankRows(0, 4, 0.25), RankRows(40, 1, 3.0)))],
    "chosen for one token": [routed(1, (A, B, C), 2)],
    "chosen for each token": [Segment(1, (A,)), routed(9, (C, A, B), 2), Segment(2, (C,)), routed(1, (A, C), 1)],
    "chosen in a long prompt": [Segment(1, (B,)), routed(LONG, (A, B, C, RankRows(900, 2)), 2), routed(1, (A, B), 2)],
    "chosen from a weighted list": [routed(3, (RankRows(0, 4, 0.5), RankRows(40, 1, -2.0)), 2)],
    "the same adapter twice": [Segment(1, (RankRows(4, 16, 0.5), RankRows(4, 16, 0.25)))],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_grouped_equals_the_reference(case: str, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    segments = CASES[case]
    tokens = sum(segment.tokens for segment in segments)
    torch.manual_seed(1)
    x, out = torch.randn(tokens, 64), torch.randn(tokens, 96)
    a, b = torch.randn(64, 1024) / 8, torch.randn(1024, 96) / 8
    x, out, a, b = x.to(out_dtype), out.to(out_dtype), a.to(dtype), b.to(dtype)
    expected = out.double()
    add_lora_reference(expected, x.double(), a.double(), b.double(), segments)
    add_lora(out, x, a, b, plan_lora(segments, device=out.device, dtype=dtype))
    tolerance = 1e-5 if dtype == out_dtype == torch.float32 else 0.02
    assert ((out.double() - expected).abs() <= tolerance * (1 + expected.abs())).all()


def test_rows_of_the_base_do_not_change_by_a_bit() -> None:
    torch.manual_seed(2)
    x, out = torch.randn(3, 64), torch.randn(3, 96)
    before = out.clone()
    plan = plan_lora([Segment(1, ()), Segment(1, (A,)), Segment(1, ())], device=out.device, dtype=out.dtype)
    add_lora(out, x, torch.randn(64, 60), torch.randn(60, 96), plan)
    assert torch.equal(out[0], before[0])
    assert torch.equal(out[2], before[2])
    assert not torch.equal(out[1], before[1])


def test_an_adapter_that_overflows_leaves_its_neighbours_alone() -> None:
    """Its hidden values are infinite for everybody's token; they must be cleared, not multiplied by zero."""
    torch.manual_seed(3)
    x, a, b = torch.randn(2, 64), torch.randn(64, 20), torch.randn(20, 96)
    a[:, 4:20] = 3e38
    out = torch.zeros(2, 96)
    add_lora(out, x, a, b, plan_lora([Segment(1, (A,)), Segment(1, (B,))], device=out.device, dtype=out.dtype))
    expected = torch.zeros(2, 96)
    add_lora_reference(expected, x, a, b, [Segment(1, (A,)), Segment(1, ())])
    assert torch.isfinite(out[0]).all()
    torch.testing.assert_close(out[0], expected[0])


def test_a_plan_reads_each_adapter_once_however_many_tokens_share_it() -> None:
    plan = plan_lora([Segment(1, (B,))] * 20, device=torch.device("cpu"), dtype=torch.float32)
    assert len(plan.groups) == 1
    assert plan.groups[0].rows == slice(4, 20)
    assert plan.groups[0].off is None
    assert plan.starts == {4}
