"""The adapters that a run begins with: the experts of a mixture, or the one from which a training goes on.

It does: tell published adapters from folders, pull versions into a place that lasts as long as the run, and give each
one its digest, all before a base is loaded.
It does not: read weights (`methods`) or publish (`publication`).
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

EXPERTS, PARENT = "mixture.experts", "adapter.init_from"


@dataclass(frozen=True)
class Origin:
    """An adapter before the run. `name` is the job's word for it, `key` the setting that named it.

    An expert that begins fresh has neither folder nor digest. `base_fingerprint` is None where nobody recorded it.
    """

    key: str
    name: str
    folder: Path | None = None
    digest: str | None = None
    is_published: bool = False
    base_fingerprint: str | None = None


@contextmanager
def gathered_origins(job: Job, registry: Place) -> Iterator[tuple[Origin, ...]]:
    """What a job begins with: its experts in their order, or the one adapter, or none. Folders last until the end.

    Raises JobError for one that cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="loraplex-experts-") as scratch:
        given = _given(job, registry, Path(scratch))
        fresh = [Origin(EXPERTS, f"new expert {number}") for number in range(1, job.mixture.new_experts + 1)]
        yield (*given, *fresh)


def digest_of_folder(folder: Path) -> str:
    """The digest of the version that a folder's files are, or would be."""
    files = []
    for path in folder.iterdir():
        content = path.read_bytes()
        files.append(FileEntry(path.name, len(content), hashlib.sha256(content).hexdigest()))
    return str(digest_of_files(files))


def _given(job: Job, registry: Place, scratch: Path) -> list[Origin]:
    named = [(EXPERTS, name) for name in job.mixture.experts]
    if job.adapter.init_from is not None:
        named.append((PARENT, job.adapter.init_from))
    origins: list[Origin] = []
    with ExitStack() as stack:
        opened: Registry | None = None
        for key, name in named:
            if is_folder_name(name):
                origins.append(_from_folder(key, name))
                continue
            if opened is None:
                opened = stack.enter_context(_opened(registry, key, name))
            origins.append(_from_registry(opened, key, name, scratch / str(len(origins))))
    _refuse_twins(origins)
    return origins


def _opened(registry: Place, key: str, name: str) -> Registry:
    try:
        return open_given(registry, create=False)
    except RegistryError as error:
        raise JobError(f"{name!r} is not to be had: {error}", key=key) from error


def _from_registry(registry: Registry, key: str, name: str, target: Path) -> Origin:
    try:
        version = registry.resolve(name, principal=Principal.operator())
        folder = registry.pull(version, target)
    except RegistryError as error:
        reason = f"{name!r} is not to be had: {error} An adapter folder begins with './', '/' or '~'."
        raise JobError(reason, key=key) from error
    return Origin(key, f"{version.adapter}@{version.number}", folder, version.digest, True, version.base_fingerprint)


def _from_folder(key: str, name: str) -> Origin:
    folder = Path(name).expanduser()
    try:
        adapter = AdapterFolder.open(folder)
    except RegistryError as error:
        raise JobError(f"{name!r} is no adapter folder: {error}", key=key) from error
    fingerprint = None if adapter.manifest is None else adapter.manifest.base.fingerprint
    return Origin(key, folder.name, folder, digest_of_folder(folder), False, fingerprint)


def _refuse_twins(origins: list[Origin]) -> None:
    for place, origin in enumerate(origins):
        for other in origins[:place]:
            if origin.digest == other.digest:
                raise JobError(f"{origin.name!r} and {other.name!r} are the same version", key=origin.key)
