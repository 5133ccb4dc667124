"""The grid of 8 bits: the nearest of its values, the least power of two for a step, and nothing lost in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from basemodel.eight_bits import LEAST_EXPONENT, MOST_STEPS, round_pair, steps_of

LARGEST_EXPONENT = 120


def random_pair(seed: int = 0, *, r: int = 5, inputs: int = 48, outputs: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """a [r, K], b [O, r], of ranks whose sizes lie far apart."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1.0, 1e-4, 300.0, 0.02, 7e-9])[:r]
    a = torch.randn(r, inputs, generator=generator) * sizes[:, None]
    return a, torch.randn(outputs, r, generator=generator) * sizes.flip(0)


def row_of(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """The same rows as a pair's A; B says nothing."""
    return round_pair(rows, torch.zeros(1, len(rows)))[0]


def test_each_value_is_the_nearest_of_its_ranks_grid_in_a_row_of_a_and_in_a_column_of_b() -> None:
    a, b = random_pair()
    before = a.clone(), b.clone()
    rounded_a, rounded_b = round_pair(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert rounded_b.is_contiguous()
    for rows, found in ((a, rounded_a), (b.T, rounded_b.T)):
        for row, row_found, step in zip(rows, found, steps_of(rows), strict=True):
            grid = torch.arange(-MOST_STEPS, MOST_STEPS + 1) * step
            nearest = (row[:, None] - grid).abs().amin(dim=1)
            assert torch.equal((row - row_found).abs(), nearest)
            assert torch.isin(row_found, grid).all()


def test_a_step_is_the_least_power_of_two_with_which_the_largest_value_fits() -> None:
    for exponent in range(LEAST_EXPONENT, LARGEST_EXPONENT):
        largest = torch.tensor([64.0, 64.001, 100.0, -127.0, 127.001, -127.9]) * 2.0**exponent
        steps = steps_of(torch.stack([largest / 3, largest], dim=1))
        expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 2.0]) * 2.0**exponent
        assert torch.equal(steps, expected), exponent


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (127.0, 127.0),  # the most steps that there are
        (127.25, 128.0),  # it would round to 127 of the smaller steps, but does not fit: 64 of the larger ones
        (128.0, 128.0),
        (-127.0, -127.0),
        (-127.75, -128.0),
        (126.75, 127.0),
        (64.5, 64.0),  # half a step from either: the even one
        (65.5, 66.0),
    ],
)
def test_the_largest_value_at_the_ends_of_the_grid(largest: float, expected: float) -> None:
    found = rounded(row_of(largest, 1.0, 0.0))
    assert found[0, 0] == expected
    assert found[0, 2] == 0


def test_rounding_twice_is_rounding_once_and_bfloat16_holds_it() -> None:
    edges = torch.tensor([[127.0, 3.3], [127.3, 63.51], [127.9, 1.0], [63.7, 0.4], [0.0, 0.0], [1e-20, 1e-21]])
    for a, b in (random_pair(1), random_pair(2), (edges, edges.T), (edges * 2.0**-45, edges.T * 2.0**90)):
        once = round_pair(a, b)
        for half, again, saved in zip(once, round_pair(*once), (half.bfloat16() for half in once), strict=True):
            assert torch.equal(again, half)
            assert torch.equal(saved.float(), half)


def test_a_rank_of_nothing_or_next_to_nothing_is_zeros_and_takes_no_other_with_it() -> None:
    least = MOST_STEPS * 2.0**LEAST_EXPONENT
    rows = torch.tensor([[0.0, 0.0], [1e-42, -1e-45], [least / 2.1, 0.0], [least, -least / 2], [1.0, -0.3]])
    steps = steps_of(rows)
    assert steps[:3].tolist() == [0.0, 0.0, 0.0]
    assert steps[3] == 2.0**LEAST_EXPONENT
    a, b = round_pair(rows, rows.T)
    for half in (a, b.T):
        assert torch.equal(half[:3], torch.zeros(3, 2))
        assert half[3, 0] == least
        assert half[4].tolist() == [1.0, -19 / 64]


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_what_it_costs(draw: Callable[..., torch.Tensor]) -> None:
    """About 1% of a factor's length, where bfloat16 costs 0.2%."""
    generator = torch.Generator().manual_seed(0)
    a, b = draw(16, 896, generator=generator), draw(896, 16, generator=generator)
    for half, found in zip((a, b), round_pair(a, b), strict=True):
        assert 0.005 < (found - half).norm() / half.norm() < 0.013
        assert 0.001 < (half.bfloat16() - half).norm() / half.norm() < 0.002


@pytest.mark.cuda
def test_a_gpu_rounds_to_the_same_values() -> None:
    for exponent in range(LEAST_EXPONENT - 3, LARGEST_EXPONENT, 7):
        a, b = (half * 2.0**exponent for half in random_pair(3, r=1))
        for half, found in zip(round_pair(a, b), round_pair(a.cuda(), b.cuda()), strict=True):
            assert torch.equal(found.cpu(), half)
