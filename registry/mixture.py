"""Opens the folder of a LoRA-Switch mixture and judges it: its document, its gate, and its experts, without torch.

    MixtureFolder.open(folder)      files, document, manifest, and the gate's tensor table
    mixture.judge(base, experts)    whether the gate fits this base, and each expert is a plain LoRA adapter on it

An expert is a version of the mixture's own tenant, by its digest: who may publish there vouches for what the mixture's
readers are served, and nobody else's deletion can break it. To use a stranger's adapter, publish its files in the
tenant: the same files have the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.adapter import Verdict
from registry.adapter_files import list_files
from registry.base import BaseRecord
from registry.errors import BaseMismatchError, RejectedAdapterError
from registry.manifest import MANIFEST_FILE, Manifest, check_probes, parse_manifest
from registry.mixture_config import GATE_FILE, MIXTURE_FILE, MixtureConfig, parse_mixture
from registry.reasons import RejectReason
from registry.tensor_file import Tensor, check_finite, read_tensors
from registry.version import Version

WEIGHT, BIAS = "gate.weight", "gate.bias"


@dataclass(frozen=True)
class MixtureFolder:
    """A mixture's folder that is well-formed. Whether it fits a base and its experts is what `judge` says."""

    folder: Path
    config: MixtureConfig
    tensors: tuple[Tensor, ...]
    manifest: Manifest | None
    manifest_document: dict[str, Any] | None

    @classmethod
    def open(cls, folder: Path) -> MixtureFolder:
        """Read the folder's small parts. Raises RejectedAdapterError."""
        file_names = list_files(folder)
        config = parse_mixture((folder / MIXTURE_FILE).read_bytes())
        tensors = read_tensors(folder / GATE_FILE)
        manifest, document = None, None
        if MANIFEST_FILE in file_names:
            manifest, document = parse_manifest((folder / MANIFEST_FILE).read_bytes())
        return cls(folder, config, tensors, manifest, document)

    def judge(self, base: BaseRecord, experts: Mapping[str, Version]) -> Verdict:
        """Judge it for this base. `experts` are those of its digests that the publisher may use.

        Raises RejectedAdapterError, BaseMismatchError.
        """
        if self.manifest is not None:
            if self.manifest.base.fingerprint != base.fingerprint:
                raise BaseMismatchError(found=self.manifest.base.fingerprint, expected=(base.fingerprint,))
            check_probes(self.manifest, base)
        self._check_gate(base)
        check_finite(self.folder / GATE_FILE, self.tensors)
        found = self._experts(base, experts)
        return Verdict(
            rank=max(expert.rank for expert in found),
            target_modules=tuple(sorted({module for expert in found for module in expert.target_modules})),
            module_count=0,
            adapter_bytes=sum(tensor.end - tensor.begin for tensor in self.tensors),
            base_verified=all(expert.base_verified for expert in found),
        )

    def _experts(self, base: BaseRecord, experts: Mapping[str, Version]) -> Sequence[Version]:
        found = []
        for place, digest in enumerate(self.config.experts):
            field = f"experts[{place}]"
            expert = experts.get(digest)
            if expert is None:
                detail = f"`{field}` is {digest}, which is no version of this tenant that you may read"
                raise RejectedAdapterError(RejectReason.UNKNOWN_EXPERT, detail, file=MIXTURE_FILE, field=field)
            name = f"{expert.adapter}@{expert.number}"
            if expert.experts:
                detail = f"`{field}` is {name}, which is a mixture itself"
                raise RejectedAdapterError(RejectReason.UNSUPPORTED_EXPERT, detail, file=MIXTURE_FILE, field=field)
            kinds = None if expert.serving is None else expert.serving.loraplex.needs.get("kinds")
            if kinds is not None:
                detail = f"`{field}` is {name}, which is not LoRA on linear layers alone ({kinds}), and cannot be mixed"
                raise RejectedAdapterError(RejectReason.UNSUPPORTED_EXPERT, detail, file=MIXTURE_FILE, field=field)
            if expert.base_fingerprint != base.fingerprint:
                detail = f"`{field}` is {name}, which stands on base {expert.base_fingerprint}, not {base.fingerprint}"
                raise RejectedAdapterError(RejectReason.UNSUPPORTED_EXPERT, detail, file=MIXTURE_FILE, field=field)
            found.append(expert)
        return found

    def _check_gate(self, base: BaseRecord) -> None:
        count, hidden = len(self.config.experts), _hidden_size(base)
        expected = {WEIGHT: (count, hidden), BIAS: (count,)}
        shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        if shapes != expected:
            detail = f"it holds {_listed(shapes)}; {count} experts on base {base.name!r} need {_listed(expected)}"
            raise RejectedAdapterError(RejectReason.BAD_GATE, detail, file=GATE_FILE)
        for tensor in self.tensors:
            if tensor.dtype != "F32":
                detail = f"tensor {tensor.name!r} has dtype {tensor.dtype}, not F32"
                raise RejectedAdapterError(RejectReason.BAD_GATE, detail, file=GATE_FILE, tensor=tensor.name)


def _hidden_size(base: BaseRecord) -> int | None:
    """The width of the base's token embedding; None where base.json names none, and then no gate fits."""
    widths = {
        module.out_features
        for module in base.modules.values()
        if module.kind == "embedding" and module.in_features >= base.vocabulary_size
    }
    return widths.pop() if len(widths) == 1 else None


def _listed(shapes: Mapping[str, object]) -> str:
    return ", ".join(f"{name[:80]} {shape}" for name, shape in sorted(shapes.items())[:4]) or "nothing"
