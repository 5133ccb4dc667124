"""The experts that a job's mixture begins with: found, pulled and named by digest before a base is loaded.

It does: tell published adapters from folders, pull versions into a place that lasts as long as the run, and give each
one the digest by which the mixture will name it.
It does not: read weights (`switch`) or publish (`publication`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.adapter import AdapterFolder
from registry.cli.options import Place, open_given
from registry.errors import RegistryError
from registry.file_entry import FileEntry, digest_of_files
from registry.principal import Principal
from registry.registry import Registry
from trainer.errors import JobError
from trainer.job import Job, is_folder_name

KEY = "mixture.experts"


@dataclass(frozen=True)
class Expert:
    """An expert before the run. `name` is the job's word for it.

    One that begins fresh has neither folder nor digest. `base_fingerprint` is None where nobody recorded it.
    """

    name: str
    folder: Path | None = None
    digest: str | None = None
    is_published: bool = False
    base_fingerprint: str | None = None


@contextmanager
def gathered_experts(job: Job, registry: Place) -> Iterator[tuple[Expert, ...]]:
    """The experts of a job in their order; none where it makes no mixture. Their folders are there until the end.

    Raises JobError for one that cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="loraplex-experts-") as scratch:
        experts = _given(job, registry, Path(scratch))
        fresh = [Expert(f"new expert {number}") for number in range(1, job.mixture.new_experts + 1)]
        yield (*experts, *fresh)


def digest_of_folder(folder: Path) -> str:
    """The digest of the version that a folder's files are, or would be."""
    files = []
    for path in folder.iterdir():
        content = path.read_bytes()
        files.append(FileEntry(path.name, len(content), hashlib.sha256(content).hexdigest()))
    return str(digest_of_files(files))


def _given(job: Job, registry: Place, scratch: Path) -> list[Expert]:
    experts: list[Expert] = []
    with ExitStack() as stack:
        opened: Registry | None = None
        for name in job.mixture.experts:
            if is_folder_name(name):
                experts.append(_from_folder(name))
                continue
            if opened is None:
                opened = stack.enter_context(_opened(registry, name))
            experts.append(_from_registry(opened, name, scratch / str(len(experts))))
    _refuse_twins(experts)
    return experts


def _opened(registry: Place, name: str) -> Registry:
    try:
        return open_given(registry, create=False)
    except RegistryError as error:
        raise JobError(f"{name!r} is not to be had: {error}", key=KEY) from error


def _from_registry(registry: Registry, name: str, target: Path) -> Expert:
    try:
        version = registry.resolve(name, principal=Principal.operator())
        folder = registry.pull(version, target)
    except RegistryError as error:
        reason = f"{name!r} is not to be had: {error} An adapter folder begins with './', '/' or '~'."
        raise JobError(reason, key=KEY) from error
    return Expert(f"{version.adapter}@{version.number}", folder, version.digest, True, version.base_fingerprint)


def _from_folder(name: str) -> Expert:
    folder = Path(name).expanduser()
    try:
        adapter = AdapterFolder.open(folder)
    except RegistryError as error:
        raise JobError(f"{name!r} is no adapter folder: {error}", key=KEY) from error
    fingerprint = None if adapter.manifest is None else adapter.manifest.base.fingerprint
    return Expert(folder.name, folder, digest_of_folder(folder), False, fingerprint)


def _refuse_twins(experts: list[Expert]) -> None:
    for place, expert in enumerate(experts):
        for other in experts[:place]:
            if expert.digest == other.digest:
                raise JobError(f"{expert.name!r} and {other.name!r} are the same version", key=KEY)
