"""LoRA factors whose values are whole steps of a grid, so that 8 bits hold each of them.

It does: round a pair of factors to such a grid. It does not: choose who is rounded (the trainer's `adapter.dtype`), or
see whether a file is on its grid and lay it out so (`kernels/factor_layout.cpp`).

A rank's values, its row of A and likewise its column of B, are whole multiples, from -127 to 127, of one power of two:
the least one with which the largest value fits. bfloat16 holds every such value, so whoever reads the file computes
with the same numbers, in any framework; a server that sees the grid keeps them in a byte each, without rounding again.

Letters: K input features, O output features, r rank.
"""

from __future__ import annotations

import torch

MOST_STEPS = 127
LEAST_EXPONENT = -50  # of a step. Below, a whole rank is next to nothing: rounding makes zeros of it.


def round_pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """a [r, K], b [O, r], finite float32 -> the same, each value the nearest of its rank's grid."""
    return _rounded(a), _rounded(b.T).T.contiguous()


def steps_of(rows: torch.Tensor) -> torch.Tensor:
    """The step of each row's grid, a power of two: rows [r, N] float32 -> [r] float32; 0 for a row of zeros."""
    largest = rows.abs().amax(dim=1)
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent, mantissa from 0.5 to below 1
    exponent = exponent - 7 + (mantissa * 128 > MOST_STEPS).int()
    step = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where((largest > 0) & (exponent >= LEAST_EXPONENT), step, 0.0)


def _rounded(rows: torch.Tensor) -> torch.Tensor:
    step = steps_of(rows)[:, None]
    return torch.where(step > 0, (rows / step).round() * step, 0.0)
