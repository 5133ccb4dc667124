"""Opens a registry's own storage: SQLite in a folder, or PostgreSQL; and its files, on a disk or in an object store."""

from __future__ import annotations

from pathlib import Path

from registry.blobs import BlobStore, LocalBlobs
from registry.blobs.object_address import SCHEMES as OBJECT_SCHEMES
from registry.blobs.object_blobs import ObjectBlobs
from registry.database import DATABASE_FILE, Database
from registry.errors import InvalidValueError, NotFoundError, StorageError
from registry.postgres_backend import SCHEMES as POSTGRES_SCHEMES
from registry.registry import BLOBS_FOLDER, Registry
from registry.scheme import scheme_of

SCRATCH_FOLDER = Path("~/.cache/loraplex/staging")
NEXT_STEP = "Publish an adapter to make one, or name another with --registry."


def open_postgres(address: str, blobs: Path | str | None, scratch: Path | str | None, *, create: bool) -> Registry:
    """A catalog in PostgreSQL. Raises NotFoundError, InvalidValueError, StorageError."""
    scheme = scheme_of(address)
    if scheme not in POSTGRES_SCHEMES:
        raise InvalidValueError(
            "registry", f"{scheme}:// is no registry: it is a folder, http://... or postgresql://..."
        )
    if blobs is None:
        why = "a catalog in PostgreSQL has its files elsewhere: name s3://bucket/prefix, or a folder, with --blobs"
        raise InvalidValueError("blobs", why)
    database = Database(address, create=create)
    try:
        return Registry(database, _open_blobs(blobs, scratch))
    except BaseException:
        database.close()
        raise


def open_folder(folder: Path, blobs: Path | str | None, scratch: Path | str | None, *, create: bool) -> Registry:
    """A catalog in SQLite. Raises NotFoundError, InvalidValueError, StorageError."""
    if not create and not (folder / DATABASE_FILE).is_file():
        raise NotFoundError("registry", str(folder), NEXT_STEP)
    _make(folder, "--registry")
    store = LocalBlobs(folder / BLOBS_FOLDER) if blobs is None else _open_blobs(blobs, scratch)
    return Registry(Database(folder), store, folder=folder)


def _open_blobs(where: Path | str, scratch: Path | str | None) -> BlobStore:
    scheme = scheme_of(where)
    if scheme is None:
        _make(Path(where), "--blobs")
        return LocalBlobs(Path(where))
    if scheme not in OBJECT_SCHEMES:
        raise InvalidValueError("blobs", f"{scheme}:// is no store: it is a folder, s3://, gs:// or az://")
    return ObjectBlobs(str(where), Path(scratch or SCRATCH_FOLDER).expanduser())


def _make(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made ({error.strerror}). Name another folder with {option}."
        raise StorageError(message, path=folder) from error
