"""The factors of LoRA on linear layers: sorted into pairs by name, and checked against the config and the base.

What else an adapter may hold is `adapter_tensors`.

Shapes, with r the module's rank:  lora_A [r, in_features]   lora_B [out_features, r].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry.adapter_config import CONFIG_FILE, AdapterConfig
from registry.base import BaseRecord
from registry.errors import RejectedAdapterError
from registry.name_pattern import endings
from registry.reasons import RejectReason
from registry.tensor_file import Tensor

KEY_PREFIX = "base_model.model."
A_SUFFIX = ".lora_A.weight"
B_SUFFIX = ".lora_B.weight"


@dataclass(frozen=True)
class LoraPair:
    """The two tensors of one module. `module` is the module's path in the base."""

    module: str
    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The rank that the shapes say."""
        return self.a.shape[0]


def pair_tensors(tensors: tuple[Tensor, ...], *, file: str) -> Mapping[str, LoraPair]:
    """Sort the tensors into pairs by module. Raises RejectedAdapterError for anything that is not half of one."""
    halves: dict[str, dict[str, Tensor]] = {A_SUFFIX: {}, B_SUFFIX: {}}
    for tensor in tensors:
        suffix = _suffix_of(tensor, file=file)
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            detail = f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, not two dimensions of 1 or more"
            raise RejectedAdapterError(RejectReason.UNEXPECTED_TENSOR, detail, file=file, tensor=tensor.name)
        halves[suffix][tensor.name[len(KEY_PREFIX) : -len(suffix)]] = tensor
    for present, absent in ((A_SUFFIX, B_SUFFIX), (B_SUFFIX, A_SUFFIX)):
        for module in halves[present].keys() - halves[absent].keys():
            detail = f"module {module!r} has {present[1:]} and no {absent[1:]}"
            name = halves[present][module].name
            raise RejectedAdapterError(RejectReason.INCOMPLETE_PAIR, detail, file=file, tensor=name)
    a, b = halves[A_SUFFIX], halves[B_SUFFIX]
    return {module: LoraPair(module, a[module], b[module]) for module in sorted(a)}


def check_shapes(pairs: Mapping[str, LoraPair], config: AdapterConfig, base: BaseRecord, *, file: str) -> None:
    """Check each pair against its linear layer and its configured rank. Raises RejectedAdapterError."""
    for pair in pairs.values():
        layer = base.modules.get(pair.module)
        if layer is None or layer.kind != "linear":
            what = "has no module" if layer is None else "has no linear layer"
            detail = f"base {base.name!r} ({base.architecture}) {what} {pair.module!r}"
            raise RejectedAdapterError(RejectReason.UNKNOWN_MODULE, detail, file=file, tensor=pair.a.name)
        for tensor, side, found, expected in (
            (pair.a, "in_features", pair.a.shape[1], layer.in_features),
            (pair.b, "out_features", pair.b.shape[0], layer.out_features),
        ):
            if found != expected:
                detail = (
                    f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, and base {base.name!r} has {side} "
                    f"{expected} there"
                )
                raise RejectedAdapterError(RejectReason.SHAPE_MISMATCH, detail, file=file, tensor=tensor.name)
        rank = config.rank_of(pair.module)
        if not pair.a.shape[0] == pair.b.shape[1] == rank:
            detail = (
                f"module {pair.module!r} has shapes of rank {pair.a.shape[0]} (lora_A) and {pair.b.shape[1]} (lora_B), "
                f"and {CONFIG_FILE} says {rank}"
            )
            raise RejectedAdapterError(RejectReason.RANK_MISMATCH, detail, file=file, tensor=pair.a.name)


def check_targets(pairs: Mapping[str, LoraPair], config: AdapterConfig, base: BaseRecord, *, file: str) -> None:
    """Check that the tensors are those of the modules that target_modules lists. Raises RejectedAdapterError."""
    if config.targets is None:
        return
    targets, excluded = frozenset(config.targets), frozenset(config.excluded)
    for module, pair in pairs.items():
        if targets.isdisjoint(endings(module)):
            detail = f"tensor {pair.a.name!r} is for a module that target_modules does not list"
            raise RejectedAdapterError(RejectReason.TARGETS_MISMATCH, detail, file=file, tensor=pair.a.name)
    if not config.is_target_list_complete:
        return
    for module in base.modules:
        is_targeted = not targets.isdisjoint(endings(module)) and excluded.isdisjoint(endings(module))
        if is_targeted and module not in pairs:
            detail = f"target_modules lists module {module!r}, and it has no tensors"
            raise RejectedAdapterError(RejectReason.TARGETS_MISMATCH, detail, file=file)


def _suffix_of(tensor: Tensor, *, file: str) -> str:
    name = tensor.name
    if not name.startswith(KEY_PREFIX):
        detail = f"tensor {name!r} does not begin with {KEY_PREFIX!r}"
        raise RejectedAdapterError(RejectReason.WRONG_KEY_PREFIX, detail, file=file, tensor=name)
    for suffix in (A_SUFFIX, B_SUFFIX):
        if name.endswith(suffix) and len(name) > len(KEY_PREFIX) + len(suffix):
            return suffix
    detail = f"tensor {name!r} is not half of a LoRA pair"
    raise RejectedAdapterError(RejectReason.UNEXPECTED_TENSOR, detail, file=file, tensor=name)
