"""What host memory holds for an adapter or a mixture, and how it is read from a verified folder.

It does: read and fit an adapter, read a mixture's gate and score the vocabulary with it.
It does not: decide when, or keep account of memory (`adapter_pool`). Its functions run in the pool's reading thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from basemodel.adapter_parts import BaseWeights
from basemodel.adapter_weights import AdapterWeights, read_adapter
from basemodel.cuda.page_locked import PageLocked
from basemodel.description import BaseDescription
from basemodel.factor_layout import LoraPair
from basemodel.known_fits import KnownFits
from basemodel.mixture_gate import read_mixture
from basemodel.score_table import ScoreTable
from serving.engine.errors import AdapterRefusedError
from serving.engine.probe import Probe, read_probes
from serving.messages import AdapterUse


@dataclass(frozen=True)
class AdapterNature:
    """What requests must know of an adapter that is loaded: what it is besides LoRA on linear layers, in PEFT's words
    (`kinds`), what that takes beside rank rows, which token ids it may be given, and from how many it chooses.
    """

    kinds: tuple[str, ...]
    whole_bytes: int
    vocabulary_size: int
    head_size: int


@dataclass(frozen=True)
class HostAdapter:
    """An adapter that was read. `read_seconds` is what reading took in its thread."""

    weights: AdapterWeights
    nature: AdapterNature
    probes: tuple[Probe, ...]
    read_seconds: float

    @property
    def host_bytes(self) -> int:
        """Host memory that it takes."""
        return self.weights.adapter_bytes


@dataclass(frozen=True)
class HostMixture:
    """A mixture's gate that was read; its experts are adapters of their own."""

    table: ScoreTable
    probes: tuple[Probe, ...]
    read_seconds: float

    @property
    def host_bytes(self) -> int:
        """Host memory that it takes."""
        return self.table.table_bytes


def read_host_adapter(
    use: AdapterUse,
    base: BaseDescription,
    dtype: torch.dtype,
    base_weights: BaseWeights,
    *,
    known: KnownFits | None = None,
    is_pinned: bool = False,
) -> HostAdapter:
    """Raises BaseModelError, OSError, msgspec.DecodeError. `known` as in `read_adapter`; `is_pinned`: into page-locked
    memory, for a CUDA device.
    """
    begin = time.perf_counter()
    folder = Path(use.folder)
    weights = read_adapter(folder, base, dtype, base_weights, known)
    changes, size = weights.changes, base.vocabulary_size
    nature = AdapterNature((), 0, size, size)
    if changes is not None:
        nature = AdapterNature(changes.kinds, changes.whole_bytes, changes.vocabulary_size, changes.head_size)
    if is_pinned:
        weights = replace(weights, modules=page_locked(weights.modules, PageLocked()))
    return HostAdapter(weights, nature, read_probes(folder), time.perf_counter() - begin)


def page_locked(modules: Mapping[str, LoraPair], memory: PageLocked) -> dict[str, LoraPair]:
    """The same factors, which are laid out as on the device, in memory from which it copies."""
    return {path: LoraPair(memory.copy(pair.a), memory.copy(pair.b)) for path, pair in modules.items()}


def read_host_mixture(use: AdapterUse, base: BaseDescription, embedding: torch.Tensor) -> HostMixture:
    """Raises BaseModelError, AdapterRefusedError, OSError, msgspec.DecodeError. embedding [V, H]."""
    begin = time.perf_counter()
    folder = Path(use.folder)
    mixture = read_mixture(folder)
    if mixture.experts != tuple(expert.digest for expert in use.experts):
        raise AdapterRefusedError(use.digest, "its gate is for other experts than those that came with it")
    if mixture.base_fingerprint != base.fingerprint:
        raise AdapterRefusedError(use.digest, "its gate was trained on another base")
    table = ScoreTable(mixture, embedding)
    return HostMixture(table, read_probes(folder), time.perf_counter() - begin)
