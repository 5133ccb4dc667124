"""Opens a registry, wherever it is.

    /srv/registry                     a folder: SQLite and files
    http://host:port                  a registry on another machine (`registry/client.py`)
    postgresql://user@host/database   PostgreSQL; `blobs` says where the files are: s3://bucket/prefix, or a folder

What is opened here is the registry itself; who opens it needs the rights of the operator on the machine.

Databases and stores are imported where one is opened, and the HTTP client where that is asked, so that a command which
asks another machine, or only prints its help, waits for neither (tests/registry/http/test_imports.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from registry.errors import InvalidValueError
from registry.scheme import HTTP_SCHEMES, scheme_of

if TYPE_CHECKING:
    from registry.registry import Registry
    from registry.remote.transfer import Progress


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
    if scheme_of(where) in HTTP_SCHEMES:
        if blobs is not None:
            raise InvalidValueError("blobs", "a registry over HTTP knows itself where its files are")
        return open_remote(str(where), token=token, progress=progress)
    from registry.storage_opening import open_folder, open_postgres  # databases: only who opens one waits for them

    if isinstance(where, str) and scheme_of(where) is not None:
        return open_postgres(where, blobs, scratch, create=create)
    return open_folder(Path(where), blobs, scratch, create=create)


def open_remote(
    url: str, *, token: str | None = None, progress: Progress | None = None, is_patient: bool = True
) -> Registry:
    """A `RemoteRegistry`: the same methods over HTTP. One that is not patient asks once, and not for long."""
    from registry.client import RemoteRegistry  # httpx: only who asks over HTTP waits for it

    return cast("Registry", RemoteRegistry(url, token=token, progress=progress, is_patient=is_patient))
