"""Factors keep their values and lie as the device has them."""

from __future__ import annotations

import torch

from basemodel.cuda.page_locked import CHUNK_BYTES, PageLocked
from basemodel.factor_layout import LoraPair
from serving.engine.host_adapter import page_locked


def test_factors_lie_row_by_row_in_few_chunks() -> None:
    torch.manual_seed(1)
    shapes = {"a": (24, 3, 40), "b": (7, 1, 9), "large": (CHUNK_BYTES // 32, 17, 8)}
    pairs = {
        path: LoraPair(torch.randn(rank, inputs).bfloat16(), torch.randn(1, rank, outputs).bfloat16())
        for path, (inputs, rank, outputs) in shapes.items()
    }
    copies = page_locked(pairs, PageLocked(is_pinned=False))
    for path, pair in pairs.items():
        assert torch.equal(copies[path].a, pair.a)
        assert torch.equal(copies[path].b, pair.b)
        assert copies[path].a.is_contiguous()
        assert copies[path].b.is_contiguous()
        assert copies[path].b.data_ptr() % 16 == 0
    chunks = {t.untyped_storage().data_ptr() for pair in copies.values() for t in (pair.a, pair.b)}
    assert len(chunks) == 3
