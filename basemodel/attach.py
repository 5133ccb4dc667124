"""Puts adapters beside every module of a base that they can change.

It does: replace each linear layer with one that adds adapters from its arena of rank rows, put stand-ins in place of
embeddings and norms once an adapter changes them, and copy adapters in and out.
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

from basemodel.adapter_changes import Changes
from basemodel.adapter_weights import AdapterWeights
from basemodel.changed_modules import ChangedEmbedding, ChangedVectors
from basemodel.cuda.joined_layers import JoinedLayers
from basemodel.cuda.library import add_lora_tiles
from basemodel.description import BaseDescription
from basemodel.factor_layout import Copy, FactorLayout, LoraPair, copy_factors
from basemodel.linear_changes import LinearChanges
from basemodel.lora_ops import ChangedTokens, LoraPlan, add_lora
from basemodel.packed_linear import STRIP, DenseLinear, PackedLinear, can_multiply, can_pack
from basemodel.site_weights import SiteWeights

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class AdapterSites:
    """Every place of one model that an adapter can change. Only the engine loop changes it.

    `rows` rank rows are set aside in every layer; an adapter of rank r takes r of them, the same ones everywhere. An
    adapter that changes more than linear layers has a slot besides. `dtype` is the type in which adapters are kept and
    computed where the CPU kernel does not do it.
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
        self.placements = 0  # times that an adapter was placed or cleared: who remembers operands compares it
        self._bare: list[AdaptedLinear] = []  # had no rank rows when those of all others were set aside
        for path, shape in base.modules.items():
            if shape.kind != "linear":
                continue
            layer = model.get_submodule(path)
            site = AdaptedLinear(layer, self, shape.in_features, shape.out_features, is_head=layer is head)
            self._replace(path, site)
            self._sites[path] = site
        self.weights.packed = {path: site.packed for path, site in self._sites.items() if site.packed is not None}
        self.weights.layouts = {path: site.layout for path, site in self._sites.items()}

    # ------------------------------------------------------------------------------------------------- placing
    def place(self, start: int, adapter: AdapterWeights) -> int | None:
        """Copy an adapter into rows [start, start + adapter.rank) of every layer; layers it leaves alone get zeros.

        Returns the slot of an adapter that changes more than linear layers.
        """
        assert start + adapter.rank <= self.rows
        self.placements += 1
        copies = [
            copy
            for path, site in self._sites.items()
            for copy in site.place(start, adapter.rank, adapter.modules.get(path))
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
        self.placements += 1
        slot = self._slots.pop(start, None)
        for site in self._sites.values():
            site.used.discard(start)
            if slot is not None:
                site.changes.drop(slot)
        if slot is not None:
            del self._changes[slot]
            for stand_in in self._stand_ins.values():
                stand_in.changes.pop(slot, None)

    # ------------------------------------------------------------------------------------------------- on a GPU
    def join(self) -> int:
        """Compute layers that read the same input in one product, where they are quantized alike;
        returns how many groups there are. Before the first adapter.
        """
        groups = [[self._sites[path] for path in paths] for paths in siblings(self._sites)]
        joined = [group for group in groups if JoinedLayers.suits([site.base for site in group])]
        for group in joined:
            used = [site.used for site in group]
            layers = JoinedLayers([site.base for site in group], used, self.rows, self.dtype)
            for index, site in enumerate(group):
                site.joined = (layers, index)
        return len(joined)

    def set_aside(self) -> None:
        """Make the rank rows of all layers that adapters touch as a rule: from now on they lie where they lie."""
        is_quantized = {path: self._description.modules[path].quantized for path in self._sites}
        for path, site in self._sites.items():
            if is_quantized[path] or not (any(is_quantized.values()) or site.is_head):
                site.set_aside()
        self._bare = [site for site in self._sites.values() if not site.arena_bytes]

    def are_set_aside(self, starts: frozenset[int]) -> bool:
        """Whether these adapters, by first rank row, touch only layers whose rows were set aside."""
        return all(site.used.isdisjoint(starts) for site in self._bare)

    @property
    def arena_bytes(self) -> int:
        """Memory set aside for rank rows so far."""
        return sum(site.arena_bytes for site in self._sites.values())

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


class AdaptedLinear(nn.Module):
    """A linear layer of the base and its arena. x [..., H] -> [..., O].

    The arena is made when the first adapter needs it, so a layer that none touches costs nothing. `used` names the
    adapters (by first row) that have factors here: a step whose adapters do not touch this layer skips it; `changes` is
    what adapters do here besides. Where our CPU kernel can stand in for the base layer it takes over its weights, and
    adapters are kept in bfloat16 as it reads them: a [R, H] and b [R, strips * 16], where the rows of an adapter of
    rank r hold its [strips, r, 16], strip after strip. Elsewhere b is [R, O], in the type of the sites.
    """

    def __init__(
        self, base: nn.Module, sites: AdapterSites, in_features: int, out_features: int, *, is_head: bool
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features = in_features
        self.out_features = out_features
        self.is_head = is_head
        self.used: set[int] = set()
        self.changes = LinearChanges(out_features)
        self.joined: tuple[JoinedLayers, int] | None = None  # and which of them this layer is
        self.packed = PackedLinear(base) if can_pack(base) else None
        self._kernel = self.packed or (DenseLinear(base) if can_multiply(base) else None)
        self.layout = FactorLayout(sites.dtype) if self._kernel is None else FactorLayout(torch.bfloat16, STRIP)
        self._owner = [sites]  # in a list, so that torch does not look for modules in it
        self._a: torch.Tensor | None = None
        self._b: torch.Tensor | None = None
        self._ends: torch.Tensor | None = None  # as the GPU kernels read where this layer's outputs end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, with every token's adapters added; [..., O' > O] where one has more outputs."""
        plan = self._owner[0].head_plan if self.is_head else self._owner[0].plan
        changed = None if plan is None else plan.changed
        if plan is not None and self.used.isdisjoint(plan.starts) and not plan.everywhere:
            plan = None
        if changed is not None and self.changes.slots.isdisjoint(changed.slots):
            changed = None
        flat = x.reshape(-1, self.in_features)
        if self._kernel is not None:
            rows = None if changed is None else self.changes.output_rows(changed)
            out = self._kernel(flat, plan, self._a, self._b, rows)
        else:
            out = self._unpacked(x, flat, plan)
            if changed is not None:
                self.changes.scale(out, changed)
        if changed is not None:
            out = self.changes.replace(out, flat, changed)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _unpacked(self, x: torch.Tensor, flat: torch.Tensor, plan: LoraPlan | None) -> torch.Tensor:
        """The output with every token's adapters where the CPU kernel does not compute it: x [..., H] -> [T, O].

        `flat` [T, H] is the same x; `plan` is None where no adapter of the step touches this layer.
        """
        if self.joined is not None:  # a sibling may be touched where this layer is not
            layers, index = self.joined
            return layers.output(index, x, self._owner[0].plan)
        out: torch.Tensor = self.base(x).view(-1, self.out_features)
        if plan is None or self._a is None or self._b is None:
            return out
        if plan.tiles is not None:
            assert self._ends is not None
            add_lora_tiles(out, flat, self._a[None], self._b, self._ends, plan.tiles)
        else:
            add_lora(out, flat, self._a.T, self._b, plan)
        return out

    def place(self, start: int, rank: int, pair: LoraPair | None) -> list[Copy]:
        """Make room for one adapter's factors, laid out as `layout` says, and return what is to be copied there.

        None, or a pair of a smaller rank, leaves zeros in the rest of its rows.
        """
        if pair is None and self._a is None and not (self.joined and self.joined[0].has_arena):
            return []
        self.set_aside()
        assert self._a is not None
        assert self._b is not None
        a, b = self._a[start : start + rank], self._b[start : start + rank]
        self.used.discard(start)
        if pair is None:
            a.zero_()
            b.zero_()
            return []
        b = b.view(-1, rank, self.layout.strip_outputs or self.out_features)  # strip after strip
        if pair.rank < rank:
            a[pair.rank :].zero_()
            b[:, pair.rank :].zero_()
        self.used.add(start)
        return [Copy(a[: pair.rank], pair.a), Copy(b[:, : pair.rank], pair.b)]

    def set_aside(self) -> None:
        """Make the rank rows, where there are none yet."""
        if self._a is None:
            self._a, self._b = self._new_arena()
            self._ends = torch.tensor([self.out_features], dtype=torch.int32, device=self._a.device)

    @property
    def is_packed(self) -> bool:
        """Whether the base layer runs on the 4-bit CPU kernel, so that a fused block may take it in."""
        return self.packed is not None

    def joins(self, plan: LoraPlan | None) -> bool:
        """Whether `operands` say all that this layer computes under this plan; if not, a block calls the layer.

        Blocks do not ask where there is no plan: without adapters a packed layer is its weight and bias.
        """
        is_changed = (
            plan is not None and plan.changed is not None and not self.changes.slots.isdisjoint(plan.changed.slots)
        )
        return self.packed is not None and not is_changed

    def operands(self, plan: LoraPlan | None) -> tuple[torch.Tensor | None, ...]:
        """The layer as a fused block gives it to the kernel: weight, bias, a, b (None where no adapter touches it)."""
        assert self.packed is not None
        if plan is None or plan.runs is None or self.used.isdisjoint(plan.starts):
            assert plan is None or plan.runs is not None or not plan.starts, "adapters would be left out in silence"
            return self.packed.weight, self.packed.bias, None, None
        return self.packed.weight, self.packed.bias, self._a, self._b

    @property
    def arena_bytes(self) -> int:
        """Bytes of this layer's arena."""
        if self._a is None or self._b is None:
            return 0
        return self._a.nbytes + self._b.nbytes

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, for model code that looks at its type or device."""
        found = self.base.weight
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias, for model code that looks at it."""
        found: object = self.base.bias
        assert found is None or isinstance(found, torch.Tensor)
        return found

    def _new_arena(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.joined is not None:
            layers, index = self.joined
            return layers.arena(index)
        rows, device, dtype = self._owner[0].rows, self.weight.device, self.layout.dtype
        width = self.layout.strip_outputs or self.out_features
        a = torch.zeros(rows, self.in_features, dtype=dtype, device=device)
        b = torch.zeros(rows, -(-self.out_features // width) * width, dtype=dtype, device=device)
        return a, b
