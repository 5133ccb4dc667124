"""How far the blocks of one request are known to the KV cache."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass
class PrefixChain:
    """`node` names the last known one of a request's full blocks, `blocks` counts them. Only `KVBlocks` changes it."""

    node: Hashable
    blocks: int = 0
