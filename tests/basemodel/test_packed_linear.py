"""The CPU kernel against the dequantized product in float64, and against the plain grouped LoRA product."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit

from basemodel.factor_layout import FactorLayout
from basemodel.factor_table import FactorTable
from basemodel.four_bit import Linear4bit
from basemodel.kernels import build
from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import add_lora_reference, plan_lora
from basemodel.lora_segment import Choice, RankRows, Segment
from basemodel.packed_linear import STRIP, DenseLinear, PackedLinear, can_multiply, can_pack

needs_kernels = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
RANK_ROWS = 64
BASE = Segment(1, ())
A, B, C = RankRows(0, 16), RankRows(16, 5), RankRows(40, 24, weight=0.7)


def routed(tokens: int, adapters: tuple[RankRows, ...], k: int) -> Segment:
    """A segment whose tokens each use k of the adapters, with weights of their own."""
    best = torch.softmax(torch.rand(tokens, len(adapters), generator=torch.Generator().manual_seed(7)), 1).topk(k)
    return Segment(tokens, adapters, Choice(best.indices.numpy(), best.values.numpy()))


BATCHES = {
    "nobody": [Segment(3, ())],
    "one row": [Segment(1, (A,))],
    "each its own": [Segment(1, (A,)), Segment(1, (B,)), BASE, Segment(1, (C,)), Segment(1, (A,))],
    "a list of two": [BASE, Segment(2, (A, C)), Segment(1, (B,)), BASE],
    "a prefill among decodes": [
        Segment(1, (B,)),
        Segment(50, (A,)),
        Segment(1, ()),
        Segment(30, (C, B)),
        Segment(1, (A,)),
    ],
    "chosen for each token": [routed(1, (A, B, C), 2), Segment(1, (B,)), routed(1, (C, A), 2), BASE],
    "a routed prefill among decodes": [Segment(1, (A,)), routed(70, (A, B, C), 2), Segment(9, (B, A)), BASE],
    "only the last": [Segment(64, ()), Segment(1, (B,))],
}


def make_layer(out_features: int, in_features: int, *, bias: bool = False, nested: bool = True) -> Linear4bit:
    torch.manual_seed(out_features + in_features)
    layer = Linear4bit(in_features, out_features, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight = torch.randn(out_features, in_features) * 0.05
    weight[0, 0] = 3.0  # an outlier: one block's scale is far from the others
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=nested)
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False
    if bias:
        layer.bias = torch.nn.Parameter(torch.randn(out_features), requires_grad=False)
    return layer


def dense(layer: Linear4bit) -> torch.Tensor:
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)


class Placed:
    """A, B and C with the factors a [R, K] and b [R, O] of their rank rows, as the kernel finds them."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.factors = FactorTable(RANK_ROWS, ["another", "layer"])
        for adapter in (A, B, C):
            rows = slice(adapter.start, adapter.start + adapter.rank)
            pair = FactorLayout(b.dtype, STRIP).lay_out(a[rows].contiguous(), b[rows].T.contiguous(), 1.0)
            assert pair is not None
            self.factors.put(adapter.start, {"layer": pair})

    @property
    def table(self) -> torch.Tensor:
        return self.factors.of("layer")


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9, 16, 17, 32, 33, 64, 65, 150])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 64), (100, 128), (512, 256), (16, 1024), (7, 192)])
def test_it_is_as_exact_as_bitsandbytes(rows: int, out_features: int, in_features: int) -> None:
    layer = make_layer(out_features, in_features)
    weight = dense(layer)
    x = torch.randn(rows, in_features).to(torch.bfloat16)
    exact = x.double() @ weight.double().T
    theirs = torch.nn.functional.linear(x, weight)
    ours = PackedLinear(layer)(x)
    assert ours.shape == exact.shape
    assert (ours.double() - exact).abs().max() <= (theirs.double() - exact).abs().max() * 1.05 + 1e-6
    assert (ours == theirs).float().mean() > 0.99


@needs_kernels
@pytest.mark.parametrize("nested", [True, False])
def test_bias_and_both_kinds_of_scales(nested: bool) -> None:
    layer = make_layer(48, 128, bias=True, nested=nested)
    x = torch.randn(3, 128).to(torch.bfloat16)
    expected = torch.nn.functional.linear(x.double(), dense(layer).double(), layer.bias.to(torch.bfloat16).double())
    torch.testing.assert_close(PackedLinear(layer)(x).double(), expected, rtol=1e-2, atol=1e-2)


@needs_kernels
@pytest.mark.parametrize("name", BATCHES)
def test_adapters_are_added_as_the_reference_does(name: str) -> None:
    segments = BATCHES[name]
    layer = make_layer(100, 192)
    weight = dense(layer)
    torch.manual_seed(1)
    a, b = (0.1 * torch.randn(RANK_ROWS, width).to(torch.bfloat16) for width in (192, 100))
    x = torch.randn(sum(segment.tokens for segment in segments), 192).to(torch.bfloat16)
    expected = x.double() @ weight.double().T
    add_lora_reference(expected, x.double(), a.double().T, b.double(), segments)
    plan = plan_lora(segments, device=torch.device("cpu"), dtype=torch.float32)
    placed = Placed(a, b)
    ours = PackedLinear(layer)(x, plan, placed.table).double()
    rounding = expected.abs() * 2**-8 + 1e-3
    assert ((ours - expected).abs() <= rounding).all()
    if name != "nobody":
        plain = x.double() @ weight.double().T
        assert (expected - plain).abs().max() > 20 * rounding.max(), "a missed adapter would not be seen"


@needs_kernels
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Bit by bit: whatever stands beside it, however many, and whatever their adapters hold."""
    packed = PackedLinear(make_layer(128, 256))
    torch.manual_seed(2)
    a = torch.randn(RANK_ROWS, 256).to(torch.bfloat16)
    placed = Placed(a, torch.randn(RANK_ROWS, 128).to(torch.bfloat16))
    x = torch.randn(90, 256).to(torch.bfloat16)
    alone = plan_lora([Segment(1, (B,))], device=torch.device("cpu"), dtype=torch.float32)
    for rows in (1, 2, 9, 16, 17, 40, 64, 65, 90):
        for position in {0, rows // 2, rows - 1}:
            neighbours = [Segment(position, (A,)), Segment(1, (B,)), Segment(rows - position - 1, (C, A))]
            plan = plan_lora(neighbours, device=torch.device("cpu"), dtype=torch.float32)
            batched = packed(x[:rows], plan, placed.table)[position]
            assert torch.equal(batched, packed(x[position : position + 1], alone, placed.table)[0]), (rows, position)


@needs_kernels
def test_what_a_token_chose_does_not_depend_on_how_the_prompt_was_cut() -> None:
    packed = PackedLinear(make_layer(128, 256))
    torch.manual_seed(4)
    a = torch.randn(RANK_ROWS, 256).to(torch.bfloat16)
    placed = Placed(a, torch.randn(RANK_ROWS, 128).to(torch.bfloat16))
    x = torch.randn(70, 256).to(torch.bfloat16)
    whole = routed(70, (A, B, C), 2)
    assert whole.choice is not None
    together = packed(x, plan_lora([whole], device=torch.device("cpu"), dtype=torch.float32), placed.table)
    for begin, end in ((0, 1), (1, 18), (18, 19), (19, 70)):
        chosen = whole.choice.part(slice(begin, end))
        part = [Segment(3, (B, C)), Segment(end - begin, whole.adapters, chosen)]
        plan = plan_lora(part, device=torch.device("cpu"), dtype=torch.float32)
        alone = packed(torch.cat([x[:3], x[begin:end]]), plan, placed.table)[3:]
        assert torch.equal(alone, together[begin:end]), (begin, end)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 32, 70])
def test_the_output_head_is_as_exact_as_torch(rows: int) -> None:
    torch.manual_seed(rows)
    head = torch.nn.Linear(192, 2048, dtype=torch.bfloat16)
    assert can_multiply(head)
    x = torch.randn(rows, 192).to(torch.bfloat16)
    exact = torch.nn.functional.linear(x.double(), head.weight.double(), head.bias.double())
    error = (DenseLinear(head)(x).double() - exact).abs().max()
    assert error <= (head(x).double() - exact).abs().max() * 1.05 + 1e-6


@needs_kernels
def test_the_layer_lets_its_own_weights_go() -> None:
    layer = make_layer(64, 64)
    PackedLinear(layer)
    assert layer.weight.numel() == 0


def test_what_the_kernel_cannot_do_is_left_to_bitsandbytes() -> None:
    assert not can_pack(torch.nn.Linear(64, 64))
    wide = make_layer(64, 64)
    wide.compute_dtype = torch.float32
    assert not can_pack(wide)
    assert not can_pack(make_layer(64, 96))


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.sys, "executable", "/a folder/python")
    said = build.build()
    assert "no C++ compiler" in said
    assert shlex.split(said.partition("then run: ")[2]) == ["/a folder/python", "-P", "-m", "basemodel.kernels.build"]


def test_building_again_does_nothing() -> None:
    """The library was built by setup; where it could not be, the reason is printed."""
    done = subprocess.run(
        [sys.executable, "-m", "basemodel.kernels.build"], check=True, capture_output=True, text=True
    ).stdout
    assert ("up to date" in done) == build.library_path().exists()
