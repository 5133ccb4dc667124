"""A version's relatives, as an answer. What walks the graph is in `lineage_graph.py`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DEPTH_LIMIT = 32
BASE_DIGITS_MIN = 8


class NodeKind(StrEnum):
    """What a node is."""

    VERSION = "version"
    BASE = "base"
    DATA = "data"


class Relation(StrEnum):
    """What an edge says of its source: it was trained from, on top of, or on its target, or chooses it for tokens."""

    PARENT = "parent"
    EXPERT = "expert"
    BASE = "base"
    DATA = "data"


@dataclass(frozen=True)
class LineageNode:
    """`node_id` is a digest or fingerprint; `names` are those under which the caller may read it."""

    node_id: str
    kind: NodeKind
    names: tuple[str, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class LineageEdge:
    """From what was made to what it was made of."""

    source: str
    target: str
    relation: Relation


@dataclass(frozen=True)
class Lineage:
    """The graph around `root`."""

    root: str
    nodes: tuple[LineageNode, ...]
    edges: tuple[LineageEdge, ...]
    is_truncated: bool
