"""Which files an adapter's folder may have, by their names and sizes. What they say is judged in `adapter.py`."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from registry.adapter_config import CONFIG_FILE
from registry.errors import RejectedAdapterError
from registry.manifest import MANIFEST_FILE
from registry.mixture_config import GATE_BYTES_LIMIT, GATE_FILE, MIXTURE_FILE
from registry.reasons import RejectReason

WEIGHTS_FILE = "adapter_model.safetensors"
NOTES_SUFFIX = ".md"
CLIENT_CACHE = ".cache"
"""A folder that Hub clients leave in what they download or upload. It is no part of the adapter, and is passed over."""

FILES_LIMIT = 16
NAME_CHARACTERS_LIMIT = 128
JSON_BYTES_LIMIT = 4_000_000
NOTES_BYTES_LIMIT = 1_000_000
WEIGHTS_BYTES_LIMIT = 8 * 1024**3


def list_files(folder: Path) -> tuple[str, ...]:
    """The names of the folder's files, sorted, after checking that each is allowed and plain.

    Raises RejectedAdapterError.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not _is_client_cache(entry))
    except OSError as error:
        detail = f"{str(folder)!r} cannot be listed ({error.strerror})"
        raise RejectedAdapterError(RejectReason.NOT_A_FOLDER, detail) from error
    if len(entries) > FILES_LIMIT:
        detail = f"the folder has {len(entries)} files, and the limit is {FILES_LIMIT}"
        raise RejectedAdapterError(RejectReason.FILE_TOO_LARGE, detail)
    for entry in entries:
        _check_entry(entry.name, _status_of(entry))
    names = tuple(entry.name for entry in entries)
    for required in required_files(names):
        if required not in names:
            detail = "it is not in the folder"
            raise RejectedAdapterError(RejectReason.MISSING_FILE, detail, file=required)
    return names


def required_files(names: Collection[str]) -> tuple[str, str]:
    """What a folder with these files must hold: the files of an adapter, or those of a mixture, which never mix.

    Raises RejectedAdapterError.
    """
    adapter, mixture = (CONFIG_FILE, WEIGHTS_FILE), (MIXTURE_FILE, GATE_FILE)
    found = [name for name in mixture if name in names]
    if not found:
        return adapter
    for name in adapter:
        if name in names:
            detail = f"it belongs to an adapter, and {found[0]} to a mixture: a version is one of the two"
            raise RejectedAdapterError(RejectReason.FILE_NOT_ALLOWED, detail, file=name)
    return mixture


def _is_client_cache(entry: Path) -> bool:
    return entry.name == CLIENT_CACHE and entry.is_dir() and not entry.is_symlink()


def _status_of(entry: Path) -> os.stat_result:
    try:
        return entry.lstat()
    except OSError as error:
        detail = f"it cannot be read ({error.strerror})"
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, detail, file=entry.name) from error


def _check_entry(name: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise RejectedAdapterError(RejectReason.SUBFOLDER, "it is a folder", file=name)
    if not stat.S_ISREG(status.st_mode):
        raise RejectedAdapterError(RejectReason.NOT_A_PLAIN_FILE, "it is not a plain file", file=name)
    limit_bytes = limit_bytes_of(name)
    if limit_bytes is None:
        raise RejectedAdapterError(RejectReason.FILE_NOT_ALLOWED, "this file is not part of an adapter", file=name)
    if status.st_size > limit_bytes:
        detail = f"it has {status.st_size:,} bytes, and the limit is {limit_bytes:,}"
        raise RejectedAdapterError(RejectReason.FILE_TOO_LARGE, detail, file=name)


def limit_bytes_of(name: str) -> int | None:
    """The limit of a file of this name; None where the name is not allowed in an adapter."""
    if name in (CONFIG_FILE, MANIFEST_FILE, MIXTURE_FILE):
        return JSON_BYTES_LIMIT
    if name == GATE_FILE:
        return GATE_BYTES_LIMIT
    if name == WEIGHTS_FILE:
        return WEIGHTS_BYTES_LIMIT
    is_plain_name = len(name) <= NAME_CHARACTERS_LIMIT and name.isascii() and name.isprintable()
    is_notes = name.endswith(NOTES_SUFFIX) and not name.startswith(".")
    return NOTES_BYTES_LIMIT if is_notes and is_plain_name else None
