"""Admission: which registered base a folder's adapter stands on, and how it is judged for it.

The one way in, for native publishes and for Hub commits. The base is the one that the manifest records; else the one
that the publisher named; else the only registered one that the config's name and the shapes fit. The last two make a
version whose base is not verified, if the tenant's policy lets it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.adapter import AdapterFolder, Verdict
from registry.base import BaseRecord
from registry.bases import Bases
from registry.blobs.staging_area import explained
from registry.errors import BaseMismatchError, NotFoundError, RejectedAdapterError
from registry.file_entry import FileEntry, digest_of_files
from registry.mixture import MixtureFolder
from registry.mixture_config import MIXTURE_FILE
from registry.reasons import RejectReason
from registry.tenant_policy import TenantPolicy
from registry.verdict import BaseMatch, ServingVerdict, mixture_verdict, serving_verdict
from registry.version import Version, VersionDraft

BASES_SHOWN = 8
FINGERPRINT_DIGITS_SHOWN = 12


FindExperts = Callable[[Sequence[str]], Mapping[str, Version]]
"""The versions with these digests that a mixture of the publisher may use."""


@dataclass(frozen=True)
class Admission:
    """An adapter or a mixture that may become a version."""

    adapter: AdapterFolder | MixtureFolder
    base: BaseRecord
    verdict: Verdict
    serving: ServingVerdict

    def draft(self, files: tuple[FileEntry, ...], *, message: str) -> VersionDraft:
        """The version that these files would be."""
        manifest = self.adapter.manifest
        data = None if manifest is None or manifest.training is None else manifest.training.data
        return VersionDraft(
            digest=str(digest_of_files(files)),
            base_fingerprint=self.base.fingerprint,
            base_verified=self.verdict.base_verified,
            files=files,
            adapter_bytes=self.verdict.adapter_bytes,
            rank=self.verdict.rank,
            target_modules=self.verdict.target_modules,
            manifest=self.adapter.manifest_document,
            message=message,
            parent_digest=None if manifest is None else manifest.parent,
            data_digest=None if data is None else data.digest,
            serving=self.serving,
            experts=self.adapter.config.experts if isinstance(self.adapter, MixtureFolder) else (),
        )


def admit(
    folder: Path, bases: Bases, *, named_base: str | None, policy: TenantPolicy, find_experts: FindExperts
) -> Admission:
    """Judge the folder for its base. `named_base` is a fingerprint or the beginning of one.

    Raises RejectedAdapterError, BaseMismatchError, StorageError, and what `Bases.find` raises.
    """
    if (folder / MIXTURE_FILE).exists():
        return _admit_mixture(folder, bases, named_base, policy, find_experts)
    with explained(folder, verb="read"):
        adapter = AdapterFolder.open(folder)
        base, match = _find_base(adapter, bases, named_base, policy)
        verdict = adapter.judge(base)
    config, pairs = adapter.config, adapter.sorted_tensors.adapted
    serving = serving_verdict(
        ranks={module: pair.rank for module, pair in pairs.items()},
        scales={module: config.scale_of(module) for module in pairs},
        config_scale=config.plain_scale,
        vocabulary_size=base.vocabulary_size,
        base_name=base.name,
        base_match=match,
        kinds=verdict.kinds,
        known_tokens=verdict.vocabulary_size,
    )
    return Admission(adapter, base, verdict, serving)


def _admit_mixture(
    folder: Path, bases: Bases, named_base: str | None, policy: TenantPolicy, find_experts: FindExperts
) -> Admission:
    """Its document records its base; whether that is verified follows from its experts."""
    with explained(folder, verb="read"):
        mixture = MixtureFolder.open(folder)
        base = _recorded(mixture.config.base_fingerprint, bases, named_base)
        verdict = mixture.judge(base, find_experts(mixture.config.experts))
    if policy.unverified_base == "refuse" and not verdict.base_verified:
        detail = "one of its experts does not record which base it was trained on"
        raise RejectedAdapterError(RejectReason.BASE_UNVERIFIED, detail)
    serving = mixture_verdict(
        experts=len(mixture.config.experts),
        top_k=mixture.config.top_k,
        rank=verdict.rank,
        base_name=base.name,
        is_verified=verdict.base_verified,
    )
    return Admission(mixture, base, verdict, serving)


def _find_base(
    adapter: AdapterFolder, bases: Bases, named: str | None, policy: TenantPolicy
) -> tuple[BaseRecord, BaseMatch]:
    if adapter.manifest is not None:
        return _recorded(adapter.manifest.base.fingerprint, bases, named), "manifest"
    if policy.unverified_base == "refuse":
        detail = "the folder has no loraplex.json that says which base it was trained on"
        raise RejectedAdapterError(RejectReason.BASE_UNVERIFIED, detail)
    if named is not None:
        return bases.find(named), "named"
    return _fitting(adapter, bases.all())


def _recorded(found: str, bases: Bases, named: str | None) -> BaseRecord:
    if named is not None:
        expected = bases.find(named)
        if expected.fingerprint != found:
            raise BaseMismatchError(found=found, expected=(expected.fingerprint,))
        return expected
    try:
        return bases.find(found)
    except NotFoundError as error:
        known = tuple(base.fingerprint for base in bases.all()[:BASES_SHOWN])
        raise BaseMismatchError(found=found, expected=known) from error


def _fitting(adapter: AdapterFolder, bases: Sequence[BaseRecord]) -> tuple[BaseRecord, BaseMatch]:
    """The only base that fits: among those that the config's name means, or among all where it means none."""
    config = adapter.config
    meant = [base for base in bases if base.name == config.base_name]
    if config.base_revision is not None:
        meant = [base for base in meant if base.revision in (None, config.base_revision)]
    fitting = [base for base in (meant or bases) if _fits(adapter, base)]
    if len(fitting) == 1:
        return fitting[0], "name and shapes" if meant else "shapes"
    if fitting:
        detail = f"the folder has no loraplex.json, and {len(fitting)} registered bases fit: {_listed(fitting)}"
        raise RejectedAdapterError(RejectReason.BASE_AMBIGUOUS, detail)
    if len(meant) == 1:
        return meant[0], "name and shapes"  # judging it says what does not fit
    known = f"registered are: {_listed(bases)}" if bases else "none is registered"
    detail = f"the folder has no loraplex.json that says which base it was trained on, and no base fits it; {known}"
    raise RejectedAdapterError(RejectReason.BASE_UNKNOWN, detail)


def _fits(adapter: AdapterFolder, base: BaseRecord) -> bool:
    try:
        adapter.check_shapes(base)
    except RejectedAdapterError:
        return False
    return True


def _listed(bases: Sequence[BaseRecord]) -> str:
    shown = [
        f"{base.name} {base.quantization.mode} {base.fingerprint[:FINGERPRINT_DIGITS_SHOWN]}"
        for base in bases[:BASES_SHOWN]
    ]
    more = f", and {len(bases) - BASES_SHOWN} more" if len(bases) > BASES_SHOWN else ""
    return ", ".join(shown) + more
