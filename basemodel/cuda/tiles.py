"""The plan of a step as the GPU kernels read it: tiles of tokens, each with the adapters that its tokens use.

It does: cut the runs of `lora_ops` into tiles of at most TILE_TOKENS tokens, on the host, once per step for all layers.
It does not: launch anything (`lora_kernels`).

Letters: N tiles, U uses (an adapter in a tile), T tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from basemodel.lora_ops import LoraPlan, TileTable, changed_tokens
from basemodel.lora_segment import Segment, shares_of

TILE_TOKENS = 16
"""The fewest rows that a tensor core multiplies at once."""
RANK_BLOCK = 16


def plan_tiles(segments: Sequence[Segment], *, device: torch.device) -> LoraPlan:
    """What every layer does in one step on a GPU, as `lora_ops.plan_lora` says it elsewhere."""
    starts = frozenset(use.start for segment in segments for use in segment.adapters)
    return LoraPlan((), starts, tiles=tile_table(segments, device), changed=changed_tokens(segments, device))


def tile_table(segments: Sequence[Segment], device: torch.device) -> TileTable | None:
    """The tiles of a step; None where no token uses an adapter. Segments follow the order of the tokens."""
    tiles: list[tuple[int, int, int, int]] = []
    uses: list[tuple[int, int, int, int]] = []
    weights: list[list[float]] = []
    position = hidden = most = 0
    for segment in segments:
        shares = shares_of(segment).expand(segment.tokens, -1)  # 0 where a token of the tile did not choose an adapter
        for begin in range(0, segment.tokens, TILE_TOKENS) if segment.adapters else ():
            own = shares[begin : begin + TILE_TOKENS]
            used = [place for place in range(len(segment.adapters)) if segment.choice is None or own[:, place].any()]
            tiles.append((position + begin, len(own), len(uses), len(used)))
            for place in used:
                use = segment.adapters[place]
                blocks = -(-use.rank // RANK_BLOCK)
                uses.append((len(tiles) - 1, use.start, use.rank, hidden))
                weights.append(own[:, place].tolist() + [0.0] * (TILE_TOKENS - len(own)))
                hidden += TILE_TOKENS * blocks * RANK_BLOCK
                most = max(most, blocks)
        position += segment.tokens
    if not tiles:
        return None
    return TileTable(
        tiles=torch.tensor(tiles, dtype=torch.int32).to(device, non_blocking=True),
        uses=torch.tensor(uses, dtype=torch.int32).to(device, non_blocking=True),
        weights=torch.tensor(weights, dtype=torch.float32).to(device, non_blocking=True),
        hidden_size=hidden,
        most_rank_blocks=most,
    )
