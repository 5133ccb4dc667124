"""Where the factors of resident adapters lie, as the CPU kernel looks them up.

It does: write an adapter's addresses beside its first rank row, and keep its memory for as long as they stand there.
It does not: copy. On a CPU an adapter is computed from the very memory into which it was read, so it comes into a step
by the writing of one row, and goes by its clearing.

    table [R, S, 4]    row: an adapter, by its first rank row; column: a layer; address of A, address of B, rank,
                       address of steps (0: A and B are bfloat16, not int8)
                       zeros: no adapter begins in this row, or it has no factors at this layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from basemodel.factor_layout import LoraPair

NOTHING = (0, 0, 0, 0)


class FactorTable:
    """The table of one model. Only `AdapterSites` changes it, between steps; `kernels/adapters.h` (Factors) reads it.

    `paths` are the layers that the kernel computes, in the order in which it comes to them.
    """

    def __init__(self, rows: int, paths: Sequence[str]) -> None:
        self._columns = {path: column for column, path in enumerate(paths)}
        self._table = torch.zeros(rows, len(paths), len(NOTHING), dtype=torch.int64)
        self._kept: dict[int, list[LoraPair]] = {}  # by first rank row

    def of(self, path: str) -> torch.Tensor:
        """One layer's column [R, 4], which follows every change."""
        return self._table[:, self._columns[path]]

    def put(self, start: int, modules: Mapping[str, LoraPair]) -> None:
        """The adapter whose rows begin at `start` has these factors; those of layers that are not here are left out."""
        pairs = [modules.get(path) for path in self._columns]
        places = [NOTHING if pair is None else _place(pair) for pair in pairs]
        self._table[start] = torch.tensor(places, dtype=torch.int64).view(len(pairs), len(NOTHING))
        self._kept[start] = [pair for pair in pairs if pair is not None]

    def drop(self, start: int) -> None:
        """No adapter begins at `start` any more; its memory goes when nobody else has it."""
        self._table[start] = 0
        self._kept.pop(start, None)

    @property
    def held_bytes(self) -> int:
        """Memory of the factors that it keeps; host memory may have the same."""
        return sum(pair.pair_bytes for pairs in self._kept.values() for pair in pairs)


def _place(pair: LoraPair) -> tuple[int, int, int, int]:
    """Where a pair lies. Whoever laid it out has judged its shapes; that it lies in one piece is what is read here."""
    assert pair.a.is_contiguous()
    assert pair.b.is_contiguous()
    if pair.steps is None:
        assert pair.a.dtype == pair.b.dtype == torch.bfloat16
        return pair.a.data_ptr(), pair.b.data_ptr(), pair.rank, 0
    assert pair.a.dtype == pair.b.dtype == torch.int8
    assert pair.steps.is_contiguous()
    return pair.a.data_ptr(), pair.b.data_ptr(), pair.rank, pair.steps.data_ptr()
