"""Opens a registry, wherever it is.

    /srv/registry                     a folder: SQLite and files
    http://host:port                  a registry on another machine (`registry/client.py`)
    postgresql://user@host/database   PostgreSQL; `blobs` says where the files are: s3://bucket/prefix, or a folder

What is opened here is the registry itself; who opens it needs the rights of the operator on the machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from registry.blobs import BlobStore, LocalBlobs
from registry.blobs.object_address import SCHEMES as OBJECT_SCHEMES
from registry.blobs.object_blobs import ObjectBlobs
from registry.client import RemoteRegistry
from registry.database import DATABASE_FILE, Database
from registry.errors import InvalidValueError, NotFoundError, StorageError
from registry.postgres_backend import SCHEMES as POSTGRES_SCHEMES
from registry.registry import BLOBS_FOLDER, Registry
from registry.remote.transfer import Progress

SCRATCH_FOLDER = Path("~/.cache/loraplex/staging")
HTTP_SCHEMES = ("http", "https")
NEXT_STEP = "Publish an adapter to make one, or name another with --registry."


def open_registry(
    where: Path | str,
    *,
    token: str | None = None,
    blobs: Path | str | None = None,
    create: bool = True,
    scratch: Path | str | None = None,
    progress: Progress | None = None,
) -> Registry:
    """Open the registry at this place, making it where there is none (unless `create` is False).

    `blobs` is where the files are, if not in the registry's folder. `scratch` is the local folder in which files are
    judged on their way to an object store. At an HTTP address this is a `RemoteRegistry`, which has the same methods:
    `token` is what it asks with, and `progress` is told of the files that pass; both mean nothing elsewhere.
    Raises NotFoundError, InvalidValueError, StorageError.
    """
    scheme = scheme_of(where)
    if scheme in HTTP_SCHEMES:
        if blobs is not None:
            raise InvalidValueError("blobs", "a registry over HTTP knows itself where its files are")
        return cast("Registry", RemoteRegistry(str(where), token=token, progress=progress))
    if scheme is None:
        return _open_folder(Path(where), blobs, scratch, create=create)
    if scheme not in POSTGRES_SCHEMES:
        raise InvalidValueError(
            "registry", f"{scheme}:// is no registry: it is a folder, http://... or postgresql://..."
        )
    if blobs is None:
        why = "a catalog in PostgreSQL has its files elsewhere: name s3://bucket/prefix, or a folder, with --blobs"
        raise InvalidValueError("blobs", why)
    database = Database(str(where), create=create)
    try:
        return Registry(database, _open_blobs(blobs, scratch))
    except BaseException:
        database.close()
        raise


def scheme_of(where: Path | str) -> str | None:
    """The scheme of an address; None for a folder."""
    scheme, mark, _ = str(where).partition("://")
    return scheme if mark and isinstance(where, str) else None


def _open_folder(folder: Path, blobs: Path | str | None, scratch: Path | str | None, *, create: bool) -> Registry:
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
