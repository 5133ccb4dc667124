"""Adapters whose file is made like one that was read before: they are cut up as that one was.

It does: remember how plain LoRA files fit the base, by the bytes of their headers and configs, and lay out the next
such file at once. Adapters of one job mostly differ in their values alone; to parse, match and judge hundreds of names
anew takes nearly as long as their values do, and holds the interpreter's lock.
It does not: judge a file (`adapter_weights`): one that it does not know, or that holds a value that is not finite, it
leaves to be read name by name.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from basemodel.adapter_parts import WEIGHTS_FILE
from basemodel.adapter_settings import CONFIG_FILE
from basemodel.factor_layout import FactorLayout, Factors, LoraPair, lay_out_all
from basemodel.tensor_file import LENGTH_BYTES, map_values

MOST_FITS = 32
# Of the header, and of the config. Larger ones are not remembered.
MOST_NAMING_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Naming:
    """Everything about an adapter's files but their values. Equal namings fit a base equally."""

    header: bytes
    config: bytes
    file_bytes: int


@dataclass(frozen=True)
class _Place:
    """Where a factor [rows, columns] begins in the mapped file, in values."""

    begin: int
    rows: int
    columns: int

    def cut(self, values: torch.Tensor) -> torch.Tensor:
        """The factor of a file like this one."""
        return values.as_strided((self.rows, self.columns), (self.columns, 1), self.begin)


@dataclass(frozen=True)
class _Fit:
    """How a file of one type is cut up: a module's path, where its factors are, its scale and its layout."""

    dtype: torch.dtype
    modules: tuple[tuple[str, _Place, _Place, float, FactorLayout], ...]


class KnownFits:
    """What was learned for one base and one type of factors. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fits: OrderedDict[_Naming, _Fit] = OrderedDict()  # least recently used first

    def read(self, folder: Path) -> dict[str, LoraPair] | None:
        """The adapter's pairs; None where its files must be read name by name."""
        naming = _naming(folder)
        with self._lock:
            fit = None if naming is None else self._fits.get(naming)
            if naming is None or fit is None:
                return None
            self._fits.move_to_end(naming)
        try:
            values = map_values(folder / WEIGHTS_FILE, naming.file_bytes // fit.dtype.itemsize, fit.dtype)
        except OSError:  # reading name by name says so
            return None
        cut = {path: Factors(a.cut(values), b.cut(values), scale, layout) for path, a, b, scale, layout in fit.modules}
        pairs, bad = lay_out_all(cut)
        return pairs if bad is None else None

    def learn(self, folder: Path, factors: Mapping[str, Factors]) -> None:
        """Remember how a file was cut up that is `factors` and nothing else. Nothing happens where it is more than
        that, or where the kernels do not lay it out.
        """
        naming = _naming(folder)
        tensors = [half for each in factors.values() for half in (each.a, each.b)]
        if naming is None or not tensors or not all(each.is_for_kernel for each in factors.values()):
            return
        places = {(half.dtype, half.untyped_storage().data_ptr()) for half in tensors}
        begin = LENGTH_BYTES + len(naming.header)
        if len(places) > 1 or begin + sum(half.nbytes for half in tensors) != naming.file_bytes:
            return
        modules = tuple(
            (path, _place(each.a), _place(each.b), each.scale, each.layout) for path, each in factors.items()
        )
        with self._lock:
            self._fits[naming] = _Fit(tensors[0].dtype, modules)
            if len(self._fits) > MOST_FITS:
                self._fits.popitem(last=False)


def _place(factor: torch.Tensor) -> _Place:
    assert factor.is_contiguous()
    return _Place(int(factor.storage_offset()), *factor.shape)


def _naming(folder: Path) -> _Naming | None:
    """None where a file is missing, too large to be remembered, or no plain file: reading name by name says so."""
    config = folder / CONFIG_FILE
    try:
        about = config.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_NAMING_BYTES:
            return None
        with (folder / WEIGHTS_FILE).open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MOST_NAMING_BYTES:
                return None
            return _Naming(file.read(length), config.read_bytes(), os.fstat(file.fileno()).st_size)
    except OSError:
        return None
