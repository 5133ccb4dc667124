"""Puts adapters beside every module of a base that they can change.

It does: replace each linear layer with one that adds adapters, put stand-ins in place of embeddings and norms once an
adapter changes them, and let adapters in and out: into arenas, or into the table that the CPU kernel reads.
It does not: decide who owns which rows (`serving.engine.adapter_pool`) or which token uses which (`lora_ops`).

    AdapterSites.plan        set once before each forward, read by every layer
    AdapterSites.head_plan   the same for the output head, which sees the sampled positions only

Whoever computes a layer in another way than by calling its modules (`blocks`) asks `joins` first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from basemodel.adapted_linear import AdaptedLinear
from basemodel.adapter_changes import Changes
from basemodel.adapter_weights import AdapterWeights
from basemodel.changed_modules import ChangedEmbedding, ChangedVectors
from basemodel.cuda.joined_layers import JoinedLayers
from basemodel.description import BaseDescription
from basemodel.factor_layout import copy_factors
from basemodel.factor_table import FactorTable
from basemodel.layer_arena import LayerArena
from basemodel.lora_ops import ChangedTokens, LoraPlan
from basemodel.packed_linear import can_pack
from basemodel.site_weights import SiteWeights

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class AdapterSites:
    """Every place of one model that an adapter can change. Only the engine loop changes it.

    An adapter of rank r takes r of `rows` rank rows, the same ones in every layer: they are its name in a plan, and its
    place where a layer has an arena. An adapter that changes more than linear layers has a slot besides. `dtype` is the
    type in which adapters are kept and computed where the CPU kernel does not do it.
    """

    def __init__(self, model: PreTrainedModel, base: BaseDescription, *, rows: int, dtype: torch.dtype) -> None:
        self.rows = rows
        self.dtype = dtype
        self.plan: LoraPlan | None = None
        self.head_plan: LoraPlan | None = None
        self._model = model
        self._description = base
        self.weights = SiteWeights(model, base)
        head = model.get_output_embeddings()
        self._sites: dict[str, AdaptedLinear] = {}
        self._stand_ins: dict[str, ChangedEmbedding | ChangedVectors] = {}
        self._slots: dict[int, int] = {}  # by first rank row
        self._changes: dict[int, Changes] = {}  # by slot
        self._bare: list[LayerArena] = []  # had no rank rows when those of all others were set aside
        for path, shape in base.modules.items():
            if shape.kind != "linear":
                continue
            layer = model.get_submodule(path)
            sizes = shape.in_features, shape.out_features
            site = AdaptedLinear(layer, self, *sizes, rows=rows, dtype=dtype, is_head=layer is head)
            self._replace(path, site)
            self._sites[path] = site
        self._arenas = {path: site.arena for path, site in self._sites.items() if site.arena is not None}
        self._factors = FactorTable(rows, [path for path in self._sites if path not in self._arenas])
        for path, site in self._sites.items():
            site.table = self._factors.of(path) if site.arena is None else None
        self.weights.packed = {path: site.packed for path, site in self._sites.items() if site.packed is not None}
        self.weights.layouts = {path: site.layout for path, site in self._sites.items()}

    # ------------------------------------------------------------------------------------------------- placing
    def place(self, start: int, adapter: AdapterWeights) -> int | None:
        """Let an adapter into rows [start, start + adapter.rank): from now on a plan may name it.

        It is copied where layers have arenas (those it leaves alone get zeros there); where the CPU kernel computes, it
        is read from its own memory, which is kept until it is cleared. Returns the slot of one that changes more than
        linear layers.
        """
        assert start + adapter.rank <= self.rows
        self._factors.put(start, adapter.modules)
        copies = [
            copy
            for path, arena in self._arenas.items()
            for copy in arena.place(start, adapter.rank, adapter.modules.get(path))
        ]
        copy_factors(copies)
        if adapter.changes is None:
            return None
        slot = next(number for number in range(len(self._changes) + 1) if number not in self._changes)
        self._slots[start], self._changes[slot] = slot, adapter.changes
        device = self._model.device
        for path, change in adapter.changes.linears.items():
            self._sites[path].changes.put(slot, change, device)
        for path, table in adapter.changes.embeddings.items():
            self._embedding(path).changes[slot] = table.to(device)
        for path, vectors in adapter.changes.vectors.items():
            self._vectors(path).changes[slot] = {name: vector.to(device) for name, vector in vectors.items()}
        return slot

    def clear(self, start: int) -> None:
        """Forget the adapter whose rows begin at `start`."""
        self._factors.drop(start)
        for arena in self._arenas.values():
            arena.used.discard(start)
        slot = self._slots.pop(start, None)
        if slot is not None:
            del self._changes[slot]
            for site in self._sites.values():
                site.changes.drop(slot)
            for stand_in in self._stand_ins.values():
                stand_in.changes.pop(slot, None)

    # ------------------------------------------------------------------------------------------------- on a GPU
    def join(self) -> int:
        """Compute layers that read the same input in one product, where they are quantized alike;
        returns how many groups there are. Before the first adapter.
        """
        groups = [[(self._sites[path].base, self._arenas[path]) for path in paths] for paths in siblings(self._arenas)]
        joined = [group for group in groups if JoinedLayers.suits([base for base, _ in group])]
        for group in joined:
            used = [arena.used for _, arena in group]
            layers = JoinedLayers([base for base, _ in group], used, self.rows, self.dtype)
            for index, (_, arena) in enumerate(group):
                arena.joined = (layers, index)
        return len(joined)

    def set_aside(self) -> None:
        """Make the rank rows of all layers that adapters touch as a rule: from now on they lie where they lie."""
        is_quantized = {path: self._description.modules[path].quantized for path in self._sites}
        for path, arena in self._arenas.items():
            if is_quantized[path] or not (any(is_quantized.values()) or self._sites[path].is_head):
                arena.set_aside()
        self._bare = [arena for arena in self._arenas.values() if not arena.arena_bytes]

    def are_set_aside(self, starts: frozenset[int]) -> bool:
        """Whether these adapters, by first rank row, touch only layers whose rows were set aside."""
        return all(arena.used.isdisjoint(starts) for arena in self._bare)

    @property
    def copies(self) -> bool:
        """Whether an adapter is copied when it is placed: not where the CPU kernel computes every layer."""
        return bool(self._arenas)

    @property
    def factor_bytes(self) -> int:
        """Memory set aside for rank rows so far, and that of resident adapters that lie in memory of their own."""
        return sum(arena.arena_bytes for arena in self._arenas.values()) + self._factors.held_bytes

    @property
    def whole_bytes(self) -> int:
        """Memory of what the resident adapters change besides."""
        return sum(changes.whole_bytes for changes in self._changes.values())

    # ------------------------------------------------------------------------------------------------- stand-ins
    def _embedding(self, path: str) -> ChangedEmbedding:
        found = self._stand_ins.get(path)
        if found is None:
            found = self._stand_ins[path] = ChangedEmbedding(self._model.get_submodule(path), self._current)
            self._replace(path, found)
        assert isinstance(found, ChangedEmbedding)
        return found

    def _vectors(self, path: str) -> ChangedVectors:
        found = self._stand_ins.get(path)
        if found is None:
            found = self._stand_ins[path] = ChangedVectors(self._model.get_submodule(path), self._current)
            self._replace(path, found)
        assert isinstance(found, ChangedVectors)
        return found

    def _current(self) -> ChangedTokens | None:
        return None if self.plan is None else self.plan.changed

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, module)


def siblings(paths: Iterable[str]) -> list[list[str]]:
    """The layers among `paths` that read the same input in their parent: q, k and v, gate and up."""
    known = set(paths)
    parents = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    groups = [[f"{parent}.{name}" for name in names] for parent in parents for names in SIBLINGS]
    return [group for group in groups if known.issuperset(group)]


def rank_row_bytes(model: PreTrainedModel, base: BaseDescription, dtype: torch.dtype) -> int:
    """Bytes of one rank row over all quantized layers (over all linear layers, where none is quantized)."""
    linear = {path: shape for path, shape in base.modules.items() if shape.kind == "linear"}
    counted = {path: shape for path, shape in linear.items() if shape.quantized} or linear
    return sum(
        (shape.in_features + shape.out_features)
        * (torch.bfloat16 if can_pack(model.get_submodule(path)) else dtype).itemsize
        for path, shape in counted.items()
    )
