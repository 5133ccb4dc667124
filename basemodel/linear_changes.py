"""What adapters change at one linear layer besides LoRA, by slot: scales and shifts, whole weights, some outputs.

It does: keep these in memory, hand scales and shifts to the kernel, and apply what it does not do.
It does not: decide which tokens belong to which slot (`lora_ops.ChangedTokens`).

Every row is computed by itself: the kernel sums in a fixed order, so what is changed for one row leaves the bits of the
others alone, and its own bits do not depend on them.

Letters: T tokens, K input features, O output features, N slots.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from basemodel.adapter_changes import LinearChange
from basemodel.lora_ops import ChangedTokens
from basemodel.packed_linear import STRIP, OutputRows, suits_kernel


class LinearChanges:
    """One layer's changes. Only the engine loop changes it. `slots` are those that have a change here."""

    def __init__(self, out_features: int) -> None:
        self.slots: set[int] = set()
        self._width = -(-out_features // STRIP) * STRIP
        self._out_features = out_features
        self._scale: torch.Tensor | None = None
        self._shift: torch.Tensor | None = None
        self._whole: dict[int, _Product] = {}
        self._columns: dict[int, tuple[torch.Tensor, _Product]] = {}

    def put(self, slot: int, change: LinearChange, device: torch.device) -> None:
        """Take over a change; the slot must be free."""
        assert slot not in self.slots
        self.slots.add(slot)
        if change.scale is not None or change.shift is not None:
            scale, shift = self._rows_for(slot, device)
            scale[: self._out_features] = 1.0 if change.scale is None else change.scale
            shift[: self._out_features] = 0.0 if change.shift is None else change.shift
        if change.weight is not None:
            bias = None if change.bias is None else change.bias.to(device)
            self._whole[slot] = _Product(change.weight.to(device), bias)
        if change.tokens is not None:
            self._columns[slot] = change.tokens.ids.to(device), _Product(change.tokens.values.to(device), None)

    def drop(self, slot: int) -> None:
        """Forget a slot's change, if it has one here."""
        if slot not in self.slots:
            return
        self.slots.discard(slot)
        self._whole.pop(slot, None)
        self._columns.pop(slot, None)
        if self._scale is not None and self._shift is not None and slot < len(self._scale):
            self._scale[slot] = 1.0
            self._shift[slot] = 0.0

    def output_rows(self, changed: ChangedTokens) -> OutputRows | None:
        """Scales and shifts as the kernel reads them; None where there are none here."""
        if self._scale is None or self._shift is None:
            return None
        if len(self._scale) <= max(changed.slots):
            self._grow(max(changed.slots) + 1, self._scale.device)
        return OutputRows(changed.rows, self._scale, self._shift)

    def scale(self, out: torch.Tensor, changed: ChangedTokens) -> None:
        """Apply scales and shifts to `out` [T, O] in place, where the kernel did not."""
        if self._scale is None or self._shift is None:
            return
        for span, slot in changed.spans:
            if slot in self.slots and slot < len(self._scale):
                rows = slice(0, self._out_features)
                out[span] = torch.addcmul(self._shift[slot, rows], out[span].float(), self._scale[slot, rows]).to(
                    out.dtype
                )

    def replace(self, out: torch.Tensor, x: torch.Tensor, changed: ChangedTokens) -> torch.Tensor:
        """`out` [T, O] with the rows of whole weights and replaced outputs: x [T, K] -> [T, O' >= O].

        Where a weight has more outputs than the base, the rows of others end in zeros that nobody may read.
        """
        here = [(span, slot) for span, slot in changed.spans if slot in self._whole or slot in self._columns]
        if not here:
            return out
        width = max(out.shape[1], *(self._outputs(slot) for _, slot in here))
        if width > out.shape[1]:
            out = F.pad(out, (0, width - out.shape[1]))
        for span, slot in here:
            rows = x[span]
            if slot in self._whole:
                product = self._whole[slot]
                out[span, : product.outputs] = product(rows).to(out.dtype)
            if slot in self._columns:
                ids, product = self._columns[slot]
                out[span, ids] = product(rows).to(out.dtype)
        return out

    @property
    def whole_bytes(self) -> int:
        """Memory of scales and shifts; whole weights are counted with their adapter."""
        return 0 if self._scale is None or self._shift is None else self._scale.nbytes + self._shift.nbytes

    def _outputs(self, slot: int) -> int:
        whole = self._whole[slot].outputs if slot in self._whole else 0
        columns = int(self._columns[slot][0][-1]) + 1 if slot in self._columns else 0
        return max(whole, columns)

    def _rows_for(self, slot: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self._scale is None or len(self._scale) <= slot:
            self._grow(slot + 1, device)
        assert self._scale is not None
        assert self._shift is not None
        return self._scale[slot], self._shift[slot]

    def _grow(self, slots: int, device: torch.device) -> None:
        """Rows for `slots` slots: those without a change here multiply by 1 and add 0.

        A step may ask for them, in inference mode, whose tensors nobody may write to outside of it: `drop` does.
        """
        with torch.inference_mode(mode=False):
            scale = torch.ones(slots, self._width, device=device)
            shift = torch.zeros(slots, self._width, device=device)
        if self._scale is not None and self._shift is not None:
            scale[: len(self._scale)], shift[: len(self._shift)] = self._scale, self._shift
        self._scale, self._shift = scale, shift


class _Product:
    """x W^T + bias for a weight [O', K] of any O', on the kernel where it can be."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs = len(weight)
        missing = -self.outputs % STRIP
        padded = F.pad(weight, (0, 0, 0, missing)).contiguous() if missing else weight
        self._on_kernel = suits_kernel(padded)
        self._weight = padded if self._on_kernel else weight
        if bias is not None and self._on_kernel and missing:
            bias = F.pad(bias, (0, missing)).contiguous()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._on_kernel:
            return F.linear(x.to(self._weight.dtype), self._weight, self._bias)
        y: torch.Tensor = torch.ops.loraplex.bf16_linear(x.contiguous(), self._weight, self._bias)
        return y[:, : self.outputs]
