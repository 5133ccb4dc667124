"""A CUDA graph's stand-in on the CPU: torch's operators and our kernels, written down once and run again.

As a graph, it knows nothing of Python: what a second run computes follows from the contents of the tensors that the
first run was given, and every operator writes where it wrote. What a graph cannot hold is refused: a value that is read
back to the host, and a tensor that is made from the host's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from basemodel.cuda import library

NOT_IN_A_GRAPH = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::is_nonzero", "aten::item"}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in NOT_IN_A_GRAPH:
            raise RuntimeError(f"{func._schema.name} cannot be captured")
        first = func(*args, **(kwargs or {}))

        def again() -> None:
            second = func(*args, **(kwargs or {}))
            for old, new in zip(tree_leaves(first), tree_leaves(second), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():  # no view, not in place
                    old.copy_(new)

        self.steps.append(again)
        return first


class TapeBackend:
    """`GraphBackend` on the CPU. `bytes_each` is what a capture is said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, bytes_each: int = 0) -> None:
        self.taken_bytes = 0
        self.tapes = 0
        self._bytes_each = bytes_each
        self._tape: Tape | None = None
        load = library._module
        monkeypatch.setattr(library, "_module", lambda name: self._heard(load(name)))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        tape = self._tape = Tape()
        try:
            with tape:
                work()
        finally:
            self._tape = None
        self.taken_bytes += self._bytes_each
        self.tapes += 1

        def replay() -> None:
            for step in tape.steps:
                step()

        return replay

    def _heard(self, module: Any) -> Any:
        """The kernels of a module: they do not go through torch, so they are written down here."""

        def paged_attention(*operands: Any, **options: Any) -> torch.Tensor:
            with _disable_current_modes():
                out = module.paged_attention(*operands, **options)
            self._write(lambda: out.copy_(module.paged_attention(*operands, **options)))
            return out

        def add_lora_tiles(*operands: Any) -> None:
            with _disable_current_modes():
                module.add_lora_tiles(*operands)
            self._write(lambda: module.add_lora_tiles(*operands))

        return SimpleNamespace(paged_attention=paged_attention, add_lora_tiles=add_lora_tiles)

    def _write(self, step: Callable[[], Any]) -> None:
        if self._tape is not None:
            self._tape.steps.append(step)
