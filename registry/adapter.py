"""Opens an adapter folder and judges it, from its config and the safetensors header, without torch.

    AdapterFolder.open(folder)   what can be known without the base: files, config, manifest, tensor table
    adapter.judge(base)          whether it fits this base and is served correctly; reads every value once

Nothing of the folder is executed, imported or rendered. Both steps raise RejectedAdapterError with a stable reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.adapter_config import CONFIG_FILE, AdapterConfig, parse_config
from registry.adapter_files import WEIGHTS_FILE, list_files
from registry.adapter_tensors import AdapterTensors, check_parts, sort_tensors
from registry.base import BaseRecord
from registry.errors import BaseMismatchError
from registry.lora_tensors import LoraPair, check_shapes, check_targets
from registry.manifest import MANIFEST_FILE, Manifest, check_probes, parse_manifest
from registry.tensor_file import Tensor, check_finite, read_tensors


@dataclass(frozen=True)
class Verdict:
    """What the registry keeps of an accepted adapter. `rank` is the largest of any module. `kinds` is what it is
    besides LoRA on linear layers, in PEFT's words; an adapter without any can be an expert or one of several.
    """

    rank: int
    target_modules: tuple[str, ...]
    module_count: int
    adapter_bytes: int
    base_verified: bool
    kinds: tuple[str, ...] = ()
    vocabulary_size: int | None = None


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder that is well-formed. Whether it fits a base is what `judge` says."""

    folder: Path
    file_names: tuple[str, ...]
    config: AdapterConfig
    sorted_tensors: AdapterTensors
    tensors: tuple[Tensor, ...]
    manifest: Manifest | None
    manifest_document: dict[str, Any] | None

    @classmethod
    def open(cls, folder: Path) -> AdapterFolder:
        """Read the folder's small parts. Raises RejectedAdapterError."""
        file_names = list_files(folder)
        config = parse_config((folder / CONFIG_FILE).read_bytes())
        tensors = read_tensors(folder / WEIGHTS_FILE)
        sorted_tensors = sort_tensors(tensors, file=WEIGHTS_FILE)
        manifest, document = None, None
        if MANIFEST_FILE in file_names:
            manifest, document = parse_manifest((folder / MANIFEST_FILE).read_bytes())
        return cls(folder, file_names, config, sorted_tensors, tensors, manifest, document)

    @property
    def pairs(self) -> Mapping[str, LoraPair]:
        """LoRA on linear layers, by module."""
        return self.sorted_tensors.pairs

    def check_shapes(self, base: BaseRecord) -> None:
        """Whether every tensor fits this base and the config. Raises RejectedAdapterError."""
        check_shapes(self.pairs, self.config, base, file=WEIGHTS_FILE)
        check_parts(self.sorted_tensors, self.config, base, file=WEIGHTS_FILE)
        check_targets(self.sorted_tensors.adapted, self.config, base, file=WEIGHTS_FILE)

    def judge(self, base: BaseRecord) -> Verdict:
        """Judge the adapter for this base. Raises RejectedAdapterError, BaseMismatchError."""
        if self.manifest is not None:
            if self.manifest.base.fingerprint != base.fingerprint:
                raise BaseMismatchError(found=self.manifest.base.fingerprint, expected=(base.fingerprint,))
            check_probes(self.manifest, base)
        self.check_shapes(base)
        check_finite(self.folder / WEIGHTS_FILE, self.tensors)
        adapted = self.sorted_tensors.adapted
        return Verdict(
            rank=max(pair.rank for pair in adapted.values()),
            target_modules=tuple(sorted({module.rpartition(".")[2] for module in adapted})),
            module_count=len(adapted),
            adapter_bytes=sum(tensor.end - tensor.begin for tensor in self.tensors),
            base_verified=self.manifest is not None,
            kinds=self.sorted_tensors.kinds,
            vocabulary_size=self.sorted_tensors.vocabulary_size(self.config, base),
        )
