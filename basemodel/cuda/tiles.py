"""The plan of a step as the GPU kernels read it: tiles of tokens that use the same adapters, and parts of those.

It does: gather the tokens of each list of adapters, wherever they stand in the batch, cut them into tiles of at most
TILE_TOKENS tokens and each tile's adapters into parts of at most RANK_BLOCK rank rows; on the host, once per step for
all layers. So rows that share an adapter read it once, and a launch has as many programs as there is work.
It does not: launch anything (`lora_kernels`).

Letters: T tokens of the step, M of them that use adapters, N tiles, K parts (a block of an adapter's rank rows, for a
tile).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from basemodel.lora_ops import LoraPlan, TileTable, changed_tokens
from basemodel.lora_segment import Segment

TILE_TOKENS = 16
"""The fewest rows that a tensor core multiplies at once."""
RANK_BLOCK = 16


@dataclass(frozen=True)
class HostTiles:
    """A `TileTable` in host memory: members [M], tiles [N, 4], parts [K, 4] int32, weights [K, 16] float32."""

    members: NDArray[np.int32]
    tiles: NDArray[np.int32]
    parts: NDArray[np.int32]
    weights: NDArray[np.float32]

    def padded(self, members: int, parts: int) -> HostTiles:
        """The same for a launch over `members` tiles and `parts` parts: what is added has no tokens and no ranks."""
        return HostTiles(
            _longer(self.members, members),
            _longer(self.tiles, members),
            _longer(self.parts, parts),
            _longer(self.weights, parts),
        )

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Its arrays by the names of the table's fields."""
        return {"members": self.members, "tiles": self.tiles, "parts": self.parts, "weights": self.weights}


def plan_tiles(segments: Sequence[Segment], *, device: torch.device) -> LoraPlan:
    """What every layer does in one step on a GPU, as `lora_ops.plan_lora` says it elsewhere."""
    return LoraPlan(
        (), starts_of(segments), tiles=tile_table(segments, device), changed=changed_tokens(segments, device)
    )


def starts_of(segments: Sequence[Segment]) -> frozenset[int]:
    """The first rank rows of the adapters that take part."""
    return frozenset(use.start for segment in segments for use in segment.adapters)


def tile_table(segments: Sequence[Segment], device: torch.device) -> TileTable | None:
    """The tiles of a step on their device; None where no token uses an adapter."""
    host = host_tiles(segments)
    if host is None:
        return None
    return TileTable(**{name: torch.from_numpy(array).to(device) for name, array in host.arrays.items()})


def host_tiles(segments: Sequence[Segment]) -> HostTiles | None:
    """The tiles of a step; None where no token uses an adapter. Segments follow the order of the tokens."""
    if any(segment.choice is not None for segment in segments):
        return _tiles(segments)
    return _remembered_tiles(tuple(segments))  # rows that go on decoding: the same in every step


@lru_cache(maxsize=4)
def _remembered_tiles(segments: tuple[Segment, ...]) -> HostTiles | None:
    """The tiles of segments without choices. Nobody changes their arrays."""
    return _tiles(segments)


def _tiles(segments: Sequence[Segment]) -> HostTiles | None:
    members: list[NDArray[np.int64]] = []
    tiles: list[tuple[int, int, int, int]] = []
    parts: list[tuple[int, int, int, int]] = []
    weights: list[NDArray[np.float32]] = []
    first = 0
    for adapters, tokens, shares in _alike(segments):
        members.append(tokens)
        for begin in range(0, len(tokens), TILE_TOKENS):
            own = shares[begin : begin + TILE_TOKENS]  # 0 where a token of the tile did not choose an adapter
            first_part = len(parts)
            for place in np.flatnonzero(own.any(axis=0)).tolist():
                start, rank = adapters[place]
                weight = np.zeros(TILE_TOKENS, dtype=np.float32)
                weight[: len(own)] = own[:, place]
                for row in range(0, rank, RANK_BLOCK):
                    parts.append((len(tiles), start + row, min(RANK_BLOCK, rank - row), 0))
                    weights.append(weight)
            tiles.append((first + begin, len(own), first_part, len(parts) - first_part))
        first += len(tokens)
    if not parts:
        return None
    return HostTiles(
        np.concatenate(members).astype(np.int32),
        np.array(tiles, dtype=np.int32),
        np.array(parts, dtype=np.int32),
        np.stack(weights),
    )


def _alike(
    segments: Sequence[Segment],
) -> list[tuple[tuple[tuple[int, int], ...], NDArray[np.int64], NDArray[np.float32]]]:
    """For each list of adapters (first row and rank): the tokens that use it, and their weights [tokens, adapters]."""
    tokens: dict[tuple[tuple[int, int], ...], list[NDArray[np.int64]]] = {}
    shares: dict[tuple[tuple[int, int], ...], list[NDArray[np.float32]]] = {}
    position = 0
    for segment in segments:
        if segment.adapters and segment.tokens:
            adapters = tuple((use.start, use.rank) for use in segment.adapters)
            tokens.setdefault(adapters, []).append(np.arange(position, position + segment.tokens))
            shares.setdefault(adapters, []).append(_shares(segment))
        position += segment.tokens
    return [(adapters, np.concatenate(tokens[adapters]), np.concatenate(shares[adapters])) for adapters in tokens]


def _shares(segment: Segment) -> NDArray[np.float32]:
    """The weight of each adapter of a segment's list for each of its tokens: [tokens, adapters]."""
    listed = np.array([use.weight for use in segment.adapters], dtype=np.float32)
    if segment.choice is None:
        return np.broadcast_to(listed, (segment.tokens, len(listed)))
    shares = np.zeros((segment.tokens, len(listed)), dtype=np.float32)
    np.put_along_axis(shares, segment.choice.chosen, segment.choice.weights, axis=1)
    return shares * listed


def _longer(array: NDArray[Any], length: int) -> NDArray[Any]:
    """`array` with zeros behind it."""
    assert len(array) <= length
    longer = np.zeros((length, *array.shape[1:]), dtype=array.dtype)
    longer[: len(array)] = array
    return longer
