"""Joined layers compute what their parts compute."""

from __future__ import annotations

import pytest
import torch

from basemodel.cuda.joined_linear import JoinedLinear, can_join
from basemodel.four_bit import Linear4bit


def layer(out_features: int, in_features: int, *, bias: bool, nested: bool = True) -> Linear4bit:
    made = Linear4bit(
        in_features, out_features, bias=bias, compute_dtype=torch.float32, compress_statistics=nested, quant_type="nf4"
    )
    weight = torch.randn(out_features, in_features)
    made.weight = type(made.weight)(weight, requires_grad=False, compress_statistics=nested, quant_type="nf4").to("cpu")
    made.support_avx512bf16_for_cpu = False
    return made.requires_grad_(False)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("biases", [(False, False, False), (True, True, True), (False, True, False)])
def test_the_parts_are_the_layers_own(nested: bool, biases: tuple[bool, ...]) -> None:
    torch.manual_seed(1)
    layers = [layer(width, 192, bias=bias, nested=nested) for width, bias in zip((128, 64, 40), biases, strict=True)]
    x = torch.randn(5, 192)
    joined = JoinedLinear(layers)(x)
    for part, one in zip(joined.split([128, 64, 40], dim=1), layers, strict=True):
        torch.testing.assert_close(part, one(x), rtol=1e-5, atol=1e-5)


def test_layers_of_other_widths_or_kinds_are_not_joined() -> None:
    one = layer(64, 128, bias=False)
    assert can_join([one, layer(32, 128, bias=True)])
    assert not can_join([one, layer(64, 192, bias=False)])
    assert not can_join([one, torch.nn.Linear(128, 64)])
    assert not can_join([layer(64, 96, bias=False)])  # rows that end within a block
    assert not can_join([])


def test_the_layers_go_on_over_the_joined_weight() -> None:
    torch.manual_seed(2)
    layers = [layer(width, 128, bias=True) for width in (64, 32)]
    x = torch.randn(3, 128)
    before = [one(x) for one in layers]
    JoinedLinear(layers)
    for one, expected in zip(layers, before, strict=True):
        torch.testing.assert_close(one(x), expected, rtol=1e-6, atol=1e-6)
    assert layers[0].weight.untyped_storage().data_ptr() == layers[1].weight.untyped_storage().data_ptr()
