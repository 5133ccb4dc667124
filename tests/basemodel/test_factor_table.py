"""Adapters that the kernel reads where they lie: which of them, of which rank, and for how long."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from basemodel.eight_bits import round_pair
from basemodel.factor_layout import FactorLayout, LoraPair
from basemodel.factor_table import FactorTable
from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import LoraPlan, plan_lora
from basemodel.lora_segment import RankRows, Segment
from basemodel.packed_linear import STRIP, DenseLinear

IN, OUT = 64, 32
A, B = RankRows(0, 16), RankRows(20, 12, weight=-0.5)
needs_kernels = pytest.mark.skipif(not has_cpu_kernels(), reason="the CPU kernels are not built, or not for this CPU")


def pair_of(rank: int, seed: int) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rank, IN), (OUT, rank)))
    pair = FactorLayout(torch.bfloat16, STRIP).lay_out(a, b, 1.0)
    assert pair is not None
    return pair


def plan_of(*uses: RankRows) -> LoraPlan:
    return plan_lora([Segment(1, (use,)) for use in uses], device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def layer() -> DenseLinear:
    torch.manual_seed(1)
    return DenseLinear(nn.Linear(IN, OUT, bias=False, dtype=torch.bfloat16))


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("rank", [1, 3, 4, 12])
def test_a_layer_may_have_a_smaller_rank_than_the_adapter(rank: int, layer: DenseLinear) -> None:
    x = torch.randn(3, IN).to(torch.bfloat16)
    table = FactorTable(32, ["layer"])
    small, other = pair_of(rank, 2), pair_of(A.rank, 3)
    table.put(A.start, {"layer": other})
    table.put(B.start, {"layer": small})
    together = layer(x, plan_of(A, B, B), table.of("layer"))
    weight = layer._weight.float()
    strips = small.b.float().transpose(1, 2).reshape(-1, rank)[:OUT]
    expected = x[1:].float() @ weight.T + B.weight * (x[1:].float() @ small.a.float().T) @ strips.T
    torch.testing.assert_close(together[1:].float(), expected, rtol=1e-2, atol=1e-2)
    exact = plan_of(RankRows(B.start, rank, B.weight), RankRows(B.start, rank, B.weight))
    assert torch.equal(together[1:], layer(x[1:], exact, table.of("layer"))), "not the bits of its own rank"


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("inputs", [IN, 3 * IN])
@pytest.mark.parametrize("rank", [1, 3, 4, 12])
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_8_bits_give_the_bits_of_16(rows: int, rank: int, inputs: int) -> None:
    """Beside another adapter that is kept in 16, and whichever of the two comes first."""
    layer = DenseLinear(nn.Linear(inputs, OUT, bias=False, dtype=torch.bfloat16))
    a, b = round_pair(torch.randn(rank, inputs), torch.randn(OUT, rank))
    layout = FactorLayout(torch.bfloat16, STRIP)
    eight, sixteen = layout.lay_out(a, b, 0.5), layout.lay_out_reference(a, b, 0.5)
    plain = layout.lay_out(torch.randn(A.rank, inputs), torch.randn(OUT, A.rank), 1.0)
    assert eight is not None
    assert sixteen is not None
    assert plain is not None
    assert (eight.steps is None, sixteen.steps is None, plain.steps is None) == (False, True, True)
    x = torch.randn(rows + 1, inputs).to(torch.bfloat16)
    table = FactorTable(32, ["layer"])
    for uses in ((A, *[B] * rows), (*[B] * rows, A)):
        seen = []
        for pair in (eight, sixteen):
            table.put(A.start, {"layer": plain})
            table.put(B.start, {"layer": pair})
            seen.append(layer(x, plan_of(*uses), table.of("layer")))
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], layer(x))


@needs_kernels
@torch.inference_mode()
def test_where_an_adapter_has_no_factors_it_changes_no_bit(layer: DenseLinear) -> None:
    x = torch.randn(2, IN).to(torch.bfloat16)
    x[1] = 0  # zeros with either sign come out as they are
    table = FactorTable(32, ["layer", "another"])
    table.put(A.start, {"layer": pair_of(A.rank, 3)})
    table.put(B.start, {"another": pair_of(B.rank, 4)})
    plain = layer(x)
    for beside in ((A, B), (B, B)):
        row = layer(x, plan_of(*beside), table.of("layer"))[1]
        assert torch.equal(row.view(torch.int16), plain[1].view(torch.int16))
    assert not torch.equal(layer(x, plan_of(A, B), table.of("layer"))[0], plain[0])


@needs_kernels
@torch.inference_mode()
def test_another_adapter_in_the_same_row_is_found_at_once(layer: DenseLinear) -> None:
    x = torch.randn(1, IN).to(torch.bfloat16)
    table = FactorTable(32, ["layer"])
    seen, column, plan = [], table.of("layer"), plan_of(A)
    for seed in (5, 6):
        table.put(A.start, {"layer": pair_of(A.rank, seed)})
        seen.append(layer(x, plan, column))
        table.drop(A.start)
        seen.append(layer(x, plan, column))
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], layer(x)), "a plan that outlives an adapter finds nothing"
    assert torch.equal(seen[3], layer(x))


def test_factors_are_kept_until_their_row_is_cleared() -> None:
    table = FactorTable(32, ["layer"])
    pair = pair_of(A.rank, 7)
    size, memory = pair.a.nbytes + pair.b.nbytes, weakref.ref(pair)
    table.put(A.start, {"layer": pair})
    del pair
    assert memory() is not None
    assert table.held_bytes == size
    table.drop(A.start)
    assert memory() is None
    assert table.held_bytes == 0
    assert not table.of("layer").any()


def test_a_model_without_a_layer_of_the_kernel() -> None:
    table = FactorTable(32, [])
    table.put(A.start, {"layer": pair_of(A.rank, 9)})
    assert table.held_bytes == 0
    table.drop(A.start)


def test_what_the_kernel_cannot_read_is_not_taken() -> None:
    table, pair = FactorTable(32, ["layer"]), pair_of(A.rank, 8)
    for wrong in (LoraPair(pair.a.T, pair.b), LoraPair(pair.a.float(), pair.b.float())):
        with pytest.raises(AssertionError):
            table.put(A.start, {"layer": wrong})
