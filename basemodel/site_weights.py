"""What reading an adapter must know of the base's own weights: biases, tables, and the lengths that DoRA divides by.

It does: answer from any thread, from weights that nobody changes, wherever they lie now (bitsandbytes' layout, the CPU
kernel's, plain). It does not: change a weight, or keep a dequantized one.

DoRA (arXiv 2402.09353) divides by the length of each row of V = W + B A (scale in B). With W in the kernel's layout
    |V_o|^2 = |W_o|^2 + 2 B_o . (W A^T)_o + B_o (A A^T) B_o^T
needs no dequantized copy: W A^T is the layer's own product with the rows of A.

Letters: O output features, K input features, V rows and H width of a table, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from basemodel.description import BaseDescription
from basemodel.factor_layout import FactorLayout
from basemodel.four_bit import Linear4bit, functional
from basemodel.packed_linear import PackedLinear

ROWS_AT_ONCE = 1024


class SiteWeights:
    """The weights of one model, before and after adapters were put beside them. `packed` are the layers whose weights
    the CPU kernel has taken over, `layouts` those whose adapters are kept in a layout of their own.
    """

    def __init__(self, model: PreTrainedModel, base: BaseDescription) -> None:
        self.packed: dict[str, PackedLinear] = {}
        self.layouts: dict[str, FactorLayout] = {}
        self._base = base
        self._modules = dict(model.named_modules())  # as they are before any stand-in
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        paths = {id(module): path for path, module in self._modules.items()}
        self.embedding_path = paths[id(embedding)]
        self.head_path = None if head is None else paths[id(head)]
        self.is_tied = head is not None and _shares(head, embedding)

    def row_norms(self, path: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The length of each row of W + b a of a linear layer: a [r, K], b [O, r], float32 -> [O] float32."""
        packed = self.packed.get(path)
        if packed is None:
            return _row_norms(_dense(self._modules[path]), a, b)
        near = a.to(torch.bfloat16)
        rest = (a - near.float()).to(torch.bfloat16)
        product = packed.product(near).double() + packed.product(rest).double()  # [r, O]
        b = b.double()
        gram = a.double() @ a.double().T
        squares = packed.row_squares().double() + 2 * (b.T * product).sum(0) + ((b @ gram) * b).sum(1)
        return squares.clamp_min(0).sqrt().float()

    def column_norms(self, path: str, table: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The length of each column of an embedding's table + a b: a [V, r], b [r, H], float32 -> [H] float32."""
        rows = self._weight(path) if table is None else table
        squares = torch.zeros(rows.shape[1], dtype=torch.float64)
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            squares += (rows[part].float().cpu() + a[part] @ b).double().square().sum(0)
        return squares.sqrt().float()

    def layout(self, path: str) -> FactorLayout | None:
        """How adapters are kept at a linear layer; None where nothing asks for a layout of its own."""
        return self.layouts.get(path)

    def bias(self, path: str) -> torch.Tensor | None:
        """A linear layer's bias [O], if it has one."""
        bias: torch.Tensor | None = getattr(self._modules[path], "bias", None)
        return bias

    def weight(self, path: str) -> torch.Tensor | None:
        """A weight that is not quantized, as a PEFT model would save it; None where it is."""
        return None if self._base.modules[path].quantized else self._weight(path)

    def _weight(self, path: str) -> torch.Tensor:
        weight = self._modules[path].weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach()


def _shares(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same weight."""
    return one.get_parameter("weight").data_ptr() == other.get_parameter("weight").data_ptr()


def _dense(layer: nn.Module) -> torch.Tensor:
    """The weight [O, K] of a linear layer that has it still."""
    weight: Any = layer.weight
    if isinstance(layer, Linear4bit):
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    dense: torch.Tensor = weight.detach()
    return dense.T if isinstance(layer, Conv1D) else dense


def _row_norms(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    norms = [
        torch.linalg.vector_norm(
            weight[begin : begin + ROWS_AT_ONCE].float().cpu() + b[begin : begin + ROWS_AT_ONCE] @ a, dim=1
        )
        for begin in range(0, len(weight), ROWS_AT_ONCE)
    ]
    return torch.cat(norms)
