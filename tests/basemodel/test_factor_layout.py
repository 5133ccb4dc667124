"""Factors as the arena of a layer holds them: the kernel's pass against torch's own, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from basemodel.eight_bits import round_pair, steps_of
from basemodel.factor_layout import FactorLayout, Factors, LoraPair, is_finite_throughout, lay_out_all
from basemodel.kernels.library import has_cpu_kernels
from basemodel.packed_linear import STRIP

KERNEL = FactorLayout(torch.bfloat16, STRIP)
SHAPES = [(1, 64, 16), (5, 64, 48), (16, 70, 32), (17, 64, 33), (40, 128, 7), (64, 3, 100)]  # rank, inputs, outputs
needs_kernels = pytest.mark.skipif(not has_cpu_kernels(), reason="the CPU kernels are not built, or not for this CPU")


def factors(rank: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    a[0, :3] = torch.tensor([1e-40, -0.0, 1.00390625])  # not normal, a zero's sign, half way between two bf16 values
    return a.to(dtype), b.to(dtype)


def laid_out(layout: FactorLayout, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> LoraPair:
    pair = layout.lay_out(a, b, scale)
    assert pair is not None
    return pair


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.37, 64.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_lays_out_what_torch_does(shape: tuple[int, int, int], scale: float, dtype: torch.dtype) -> None:
    a, b = factors(*shape, dtype)
    fast, slow = laid_out(KERNEL, a, b, scale), KERNEL.lay_out_reference(a, b, scale)
    assert slow is not None
    for ours, theirs in ((fast.a, slow.a), (fast.b, slow.b)):
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))


@pytest.mark.parametrize("layout", [KERNEL, FactorLayout(torch.float32), FactorLayout(torch.bfloat16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_strip_has_its_outputs_for_each_rank(shape: tuple[int, int, int], layout: FactorLayout) -> None:
    rank, _, outputs = shape
    a, b = factors(*shape, torch.float32)
    pair = layout.lay_out_reference(a, b, 0.5)
    assert pair is not None
    assert pair.rank == rank
    assert torch.equal(pair.a, a.to(layout.dtype))
    whole = pair.b.transpose(1, 2).reshape(-1, rank)  # [strips * width, r]
    assert torch.equal(whole[:outputs], (0.5 * b).to(layout.dtype))
    assert not whole[outputs:].any()


@pytest.mark.parametrize("layout", [KERNEL, FactorLayout(torch.float32)])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("half", "place"), [(0, (0, 0)), (0, (4, 63)), (1, (0, 0)), (1, (46, 4))])
def test_a_value_that_is_not_finite_is_seen_wherever_it_stands(
    half: int, place: tuple[int, int], bad: float, layout: FactorLayout
) -> None:
    pair = factors(5, 64, 47, torch.float32)
    assert layout.lay_out(*pair, 1.0) is not None
    pair[half][place] = bad
    assert layout.lay_out(*pair, 1.0) is None
    assert layout.lay_out_reference(*pair, 1.0) is None


@pytest.mark.parametrize("scale", [1.0, 3e5])
def test_what_is_not_finite_once_it_is_scaled_and_rounded_is_seen(scale: float) -> None:
    a, b = factors(5, 64, 47, torch.float32)
    b[2, 3] = 3.4e38 if scale == 1.0 else 2e33  # rounds to infinity in bfloat16; overflows
    assert KERNEL.lay_out(a, b, scale) is None
    assert KERNEL.lay_out_reference(a, b, scale) is None


@pytest.mark.parametrize("layout", [KERNEL, FactorLayout(torch.float32)])
def test_a_pair_keeps_nothing_of_the_file(layout: FactorLayout) -> None:
    """Tensors of a file are mapped: what is kept must not change, or vanish, with it."""
    a, b = factors(16, 64, 32, layout.dtype)
    pair = laid_out(layout, a, b)
    before = pair.a.clone(), pair.b.clone()
    a.zero_()
    b.zero_()
    assert torch.equal(pair.a, before[0])
    assert torch.equal(pair.b, before[1])


@needs_kernels
def test_an_adapter_is_laid_out_as_its_modules_are() -> None:
    layouts = (KERNEL, FactorLayout(torch.float32), KERNEL)
    given = {
        f"module {index}": Factors(*factors(*shape, dtype), 0.25 * index, layouts[index % 3])
        for index, shape in enumerate(SHAPES)
        for dtype in ([torch.float32, torch.float16, torch.bfloat16][index % 3],)
    }
    pairs, bad = lay_out_all(given)
    assert bad is None
    assert pairs.keys() == given.keys()
    for path, each in given.items():
        alone = each.layout.lay_out_reference(each.a, each.b, each.scale)
        assert alone is not None
        for ours, theirs in ((pairs[path].a, alone.a), (pairs[path].b, alone.b)):
            assert ours.is_contiguous()
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
    for path, each in given.items():
        spoilt = each.b.clone()
        spoilt[-1, -1] = torch.nan
        assert lay_out_all(given | {path: Factors(each.a, spoilt, each.scale, each.layout)}) == ({}, path)


@needs_kernels
def test_memory_that_an_adapter_leaves_is_the_next_ones() -> None:
    """But not while anybody looks into it, and of many pieces only the last two are kept."""
    kept_bytes = torch.ops.loraplex.kept_factor_bytes
    a, b = torch.randn(64, 8192), torch.randn(8192, 64)  # 2 MiB
    piece_bytes = 2 * 2 * a.numel()
    pairs = [laid_out(KERNEL, a, b) for _ in range(4)]
    view = pairs[3].b[5]
    copied, before = view.clone(), kept_bytes()
    del pairs[3]
    assert kept_bytes() == before
    fresh = laid_out(KERNEL, 2 * a, 2 * b)
    assert torch.equal(view, copied)
    del view
    del fresh
    assert kept_bytes() == 2 * piece_bytes
    pairs.clear()
    assert kept_bytes() == 2 * piece_bytes
    again = [laid_out(KERNEL, a, b) for _ in range(3)]
    assert kept_bytes() == 0
    again.clear()
    _quarter = laid_out(KERNEL, a[:, :2048].contiguous(), b[:2048])
    assert kept_bytes() == 2 * piece_bytes, "a piece went to an adapter of a quarter of its size"


def on_grid(rank: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = round_pair(*factors(rank, inputs, outputs, torch.float32))
    b[:, -1] = 0  # a rank that does nothing
    return a.to(dtype), b.to(dtype)


def in_file_order(a: torch.Tensor) -> torch.Tensor:
    """A row of numbers of steps as the file has it: places 0, 2, ... 30 of each 32 came before 1, 3, ... 31."""
    return a.view(len(a), -1, 2, 16).transpose(2, 3).reshape(a.shape)


@needs_kernels
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("scale", [1.0, 0.37, -64.0])
@pytest.mark.parametrize("shape", [(1, 64, 16), (5, 96, 48), (17, 64, 33), (40, 128, 7), (64, 32, 100)])
def test_factors_on_a_grid_are_kept_in_8_bits_and_are_the_same(
    shape: tuple[int, int, int], scale: float, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    rank, _, outputs = shape
    a, b = (half.to(dtype) for half, dtype in zip(on_grid(*shape, torch.float32), dtypes, strict=True))
    pair = laid_out(KERNEL, a, b, scale)
    assert pair.a.dtype == pair.b.dtype == torch.int8
    assert pair.steps is not None
    assert pair.pair_bytes < 0.6 * (2 * pair.a.numel() + 2 * pair.b.numel())
    a_steps, b_steps = steps_of(a.float()), steps_of(b.float().T)
    one = torch.ones(())  # of a rank of zeros: any step will do
    assert torch.equal(in_file_order(pair.a).float() * a_steps[:, None], a.float())
    whole = pair.b.transpose(1, 2).reshape(-1, rank)
    assert torch.equal(whole[:outputs].float() * b_steps, b.float())
    assert not whole[outputs:].any()
    products = torch.where(a_steps > 0, a_steps, one) * torch.where(b_steps > 0, b_steps, one)
    assert torch.equal(pair.steps, products * torch.tensor(scale))


@needs_kernels
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("value", [1 / 256, 1e30, torch.nan, torch.inf])
def test_one_value_beside_the_grid_keeps_a_pair_in_16_bits(half: int, value: float) -> None:
    """And one that is not finite is still refused."""
    halves = on_grid(5, 64, 47, torch.float32)
    assert laid_out(KERNEL, *halves).steps is not None
    halves[half][2, 3] = value
    pair = KERNEL.lay_out(*halves, 1.0)
    assert (pair is None) == (not math.isfinite(value))
    assert pair is None or (pair.steps is None and pair.a.dtype == torch.bfloat16)


@needs_kernels
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e38, float("inf"), float("nan")])
def test_a_scale_that_leaves_the_range_of_floats_is_judged_as_in_16_bits(scale: float) -> None:
    halves = on_grid(5, 64, 47, torch.float32)
    pair, reference = KERNEL.lay_out(*halves, scale), KERNEL.lay_out_reference(*halves, scale)
    assert (pair is None) == (reference is None)
    if pair is not None and reference is not None and pair.steps is None:
        assert torch.equal(pair.b, reference.b)


@needs_kernels
@pytest.mark.parametrize("shape", [(16, 70, 32), (64, 3, 100)])
def test_an_odd_number_of_inputs_is_kept_in_16_bits(shape: tuple[int, int, int]) -> None:
    """No layer that the kernel computes has one."""
    assert laid_out(KERNEL, *on_grid(*shape, torch.float32)).steps is None


@needs_kernels
def test_an_adapter_may_have_pairs_of_both_kinds() -> None:
    given = {
        "rounded": Factors(*on_grid(5, 64, 47, torch.bfloat16), 2.0, KERNEL),
        "plain": Factors(*factors(5, 64, 47, torch.float32), 2.0, KERNEL),
        "again": Factors(*on_grid(16, 128, 33, torch.float32), 0.5, KERNEL),
    }
    pairs, bad = lay_out_all(given)
    assert bad is None
    assert [pairs[path].steps is None for path in given] == [False, True, False]
    for path, each in given.items():
        alone = laid_out(KERNEL, each.a, each.b, each.scale)
        assert torch.equal(pairs[path].a, alone.a)
        assert torch.equal(pairs[path].b, alone.b)


def test_large_finite_values_are_finite() -> None:
    assert is_finite_throughout(torch.full((8,), 3e38))  # though their sum is not
    assert not is_finite_throughout(torch.tensor([3e38, float("inf")]))
    assert not is_finite_throughout(torch.tensor([float("inf"), float("-inf"), 0.0], dtype=torch.bfloat16))
    assert is_finite_throughout(torch.tensor([1, 2**40]))
