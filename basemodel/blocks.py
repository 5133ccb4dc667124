"""Fused blocks of a decoder on the CPU kernels: norms, attention inputs, gated MLPs.

It does: give modules of transformers whose computation it knows another `forward`, and only where a trial shows that
the new one computes what the module itself computes.
It does not: re-implement a model. The order of blocks, residuals, scales and attention itself stay transformers' own,
and every module that is not in the tables below, or fails its trial, runs as it is.

A fused block equals its parts by the bit (basemodel/kernels/block_operators.cpp). So a step in which a layer needs more
than the kernel adds (`AdaptedLinear.joins`) computes the parts, and its neighbours' logits do not change. Against
torch's own functions a value may differ by one rounding to bfloat16, because sums and exponentials differ in their last
bit (tests/basemodel/test_blocks.py).
"""

from __future__ import annotations

from torch import nn

from basemodel.attach import AdapterSites
from basemodel.fused_attention import FusedAttention, fused_attention
from basemodel.fused_mlp import FusedMLP, fused_mlp
from basemodel.fused_norm import FusedNorm, fused_norm


def fused_block(module: nn.Module, sites: AdapterSites) -> FusedNorm | FusedMLP | FusedAttention | None:
    """What can stand in for this module of a model whose attention function is `listen`'s; None: it runs as it is."""
    return fused_norm(module) or fused_mlp(module, sites) or fused_attention(module, sites)
