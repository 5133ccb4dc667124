"""The difference of two versions: files, config, shapes, metrics, and how far apart their weights are.

Weights are compared module by module, never more than two modules' tensors in memory, and the update BA [out, in] is
never formed:  |BA|^2 = sum((B^T B) * (A A^T))  and  <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)),  both [r, r].
Norms and cosines are of the scaled update s B A, as it is served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.adapter_config import CONFIG_FILE, AdapterConfig, parse_config
from registry.adapter_files import WEIGHTS_FILE
from registry.adapter_tensors import sort_tensors
from registry.blobs import BlobStore
from registry.file_entry import FileEntry
from registry.json_document import parse_json_object
from registry.lora_tensors import LoraPair
from registry.mixture_config import MIXTURE_FILE
from registry.tensor_file import Tensor, read_tensors
from registry.version import Version
from registry.version_diff import Change, ModuleDiff, VersionDiff

Matrix = NDArray[np.float32]

FIELDS_LIMIT = 200
SHOWN_CHARACTERS = 500


def diff_versions(blobs: BlobStore, before: Version, after: Version, *, with_weights: bool = True) -> VersionDiff:
    """Compare two versions that the caller may read. Raises IntegrityError, StorageError."""
    configs = [_config_document(blobs, version) for version in (before, after)]
    has_modules = with_weights and not before.experts and not after.experts
    return VersionDiff(
        before=f"{before.adapter}@{before.number}",
        after=f"{after.adapter}@{after.number}",
        same_base=before.base_fingerprint == after.base_fingerprint,
        files=tuple(_changes(_digests(before), _digests(after))),
        config=tuple(_changes(*configs)),
        metrics=tuple(_changes(_metrics(before), _metrics(after), keep_equal=True)),
        modules=tuple(_modules(blobs, before, after)) if has_modules else None,
    )


def _modules(blobs: BlobStore, before: Version, after: Version) -> Iterator[ModuleDiff]:
    files = [_file(before, WEIGHTS_FILE), _file(after, WEIGHTS_FILE)]
    with blobs.laid_out([_file(before, CONFIG_FILE), files[0]]) as one:
        if files[0] == files[1] and _file(before, CONFIG_FILE) == _file(after, CONFIG_FILE):
            yield from _compare(_Weights.open(one), _Weights.open(one))
            return
        with blobs.laid_out([_file(after, CONFIG_FILE), files[1]]) as two:
            yield from _compare(_Weights.open(one), _Weights.open(two))


@dataclass(frozen=True)
class _Weights:
    """The weights of one side, read a module at a time."""

    path: Path
    config: AdapterConfig
    pairs: Mapping[str, LoraPair]

    @classmethod
    def open(cls, folder: Path) -> _Weights:
        path = folder / WEIGHTS_FILE
        config = parse_config((folder / CONFIG_FILE).read_bytes())
        return cls(path, config, sort_tensors(read_tensors(path), file=WEIGHTS_FILE).pairs)

    def factors(self, module: str) -> tuple[Matrix, Matrix, float]:
        """A [r, in] and B [out, r] in float32, and the scale."""
        pair = self.pairs[module]
        return _read(self.path, pair.a), _read(self.path, pair.b), self.config.scale_of(module)


def _compare(before: _Weights, after: _Weights) -> Iterator[ModuleDiff]:
    for module in sorted(before.pairs.keys() | after.pairs.keys()):
        one = before.factors(module) if module in before.pairs else None
        two = after.factors(module) if module in after.pairs else None
        yield _compare_module(module, one, two)


def _compare_module(
    module: str, one: tuple[Matrix, Matrix, float] | None, two: tuple[Matrix, Matrix, float] | None
) -> ModuleDiff:
    square_one, square_two = _square(one), _square(two)
    distance = cosine = cosine_a = cosine_b = None
    if one is not None and two is not None:
        if one[0].shape[1] == two[0].shape[1] and one[1].shape[0] == two[1].shape[0]:
            inner = _inner(one, two)
            distance = math.sqrt(max(0.0, square_one + square_two - 2 * inner))
            cosine = _cosine(inner, math.sqrt(square_one), math.sqrt(square_two))
        cosine_a, cosine_b = _cosine_of(one[0], two[0]), _cosine_of(one[1], two[1])
    return ModuleDiff(
        module=module,
        rank_before=None if one is None else one[0].shape[0],
        rank_after=None if two is None else two[0].shape[0],
        norm_before=None if one is None else math.sqrt(square_one),
        norm_after=None if two is None else math.sqrt(square_two),
        distance=distance,
        cosine=cosine,
        cosine_a=cosine_a,
        cosine_b=cosine_b,
    )


def _square(factors: tuple[Matrix, Matrix, float] | None) -> float:
    """|s B A|^2; nothing is zero."""
    return 0.0 if factors is None else max(0.0, _inner(factors, factors))


def _inner(one: tuple[Matrix, Matrix, float], two: tuple[Matrix, Matrix, float]) -> float:
    """<s1 B1 A1, s2 B2 A2>, by way of two products [r1, r2], in float64."""
    a = one[0].astype(np.float64) @ two[0].astype(np.float64).T
    b = one[1].astype(np.float64).T @ two[1].astype(np.float64)
    return float(np.sum(a * b)) * one[2] * two[2]


def _cosine_of(one: Matrix, two: Matrix) -> float | None:
    if one.shape != two.shape:
        return None
    first, second = one.astype(np.float64).ravel(), two.astype(np.float64).ravel()
    return _cosine(float(first @ second), float(np.linalg.norm(first)), float(np.linalg.norm(second)))


def _cosine(inner: float, norm_one: float, norm_two: float) -> float | None:
    """None where one of the two is zero and has no direction."""
    if norm_one == 0.0 or norm_two == 0.0:
        return None
    return max(-1.0, min(1.0, inner / (norm_one * norm_two)))


def _read(path: Path, tensor: Tensor) -> Matrix:
    """One tensor as float32. BF16 is the upper half of a float32, which numpy can shift into place."""
    with path.open("rb") as stream:
        stream.seek(tensor.begin)
        raw = stream.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, "<f4" if tensor.dtype == "F32" else "<f2").astype("<f4")
    return values.reshape(tensor.shape)


def _config_document(blobs: BlobStore, version: Version) -> dict[str, Any]:
    name = MIXTURE_FILE if version.experts else CONFIG_FILE
    document = parse_json_object(blobs.read(_file(version, name)), file=name)
    if isinstance(document.get("target_modules"), list):
        document["target_modules"] = sorted(map(str, document["target_modules"]))
    return document


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], *, keep_equal: bool = False) -> Iterator[Change]:
    """What differs, by name; a bounded number of bounded values."""
    names = sorted(before.keys() | after.keys())
    differing = [name for name in names if keep_equal or before.get(name) != after.get(name)]
    for name in differing[:FIELDS_LIMIT]:
        yield Change(name[:SHOWN_CHARACTERS], _bounded(before.get(name)), _bounded(after.get(name)))


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else str(value)
    shown = value if isinstance(value, (str, list, dict)) else text
    return shown if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _metrics(version: Version) -> dict[str, Any]:
    return ((version.manifest or {}).get("metrics") or {}).get("adapter") or {}


def _digests(version: Version) -> dict[str, str]:
    return {file.path: file.sha256 for file in version.files}


def _file(version: Version, path: str) -> FileEntry:
    return next(file for file in version.files if file.path == path)
