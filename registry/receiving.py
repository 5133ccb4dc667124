"""A private folder for files that arrive from elsewhere, on the registry's own disk."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import StorageError


@contextmanager
def private_folder(scratch: Path) -> Iterator[Path]:
    """A new folder below `scratch`, which is removed at the end of the block. Raises StorageError."""
    folder = scratch / secrets.token_hex(16)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made ({error.strerror}).", path=folder) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
