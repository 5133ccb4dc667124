"""Export and import as one tar file: the same bytes for the same content, and nothing trusted on the way in.

    loraplex-archive.json            the index, first (`archive_index.py`)
    loraplex-archive.sha256          its digest, as `sha256sum --check` reads it
    versions/3/adapter_config.json   the files of each version, by number and name, in the order of the index

Members are plain files in POSIX ustar headers with fixed owner, mode and time; a name that ends in .gz is compressed.
Import reads exactly this form, front to back: no links, no folders, no paths but the expected ones, no more bytes than
the index announced, all checked before a member is written. Each version is then judged like any other publish.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO, cast

from registry.archive_index import (
    INDEX_BYTES_LIMIT,
    ArchivedVersion,
    ArchiveIndex,
    Imported,
    Importer,
    describe,
    pulled,
    write_file,
)
from registry.errors import ArchiveError, ConflictError, StorageError
from registry.principal import Principal
from registry.registry import Registry
from registry.version import Version

INDEX_NAME = "loraplex-archive.json"
DIGEST_NAME = "loraplex-archive.sha256"
BLOCK_BYTES = 512
GZIP_MAGIC = b"\x1f\x8b"
GZIP_LEVEL = 1
"""Weights hardly compress: more effort would only take longer."""
PLAIN_FILE = b"0"
NAME_FIELD, SIZE_FIELD, SUM_FIELD, PREFIX_FIELD = slice(0, 100), slice(124, 136), slice(148, 156), slice(345, 500)
TYPE_AT = 156
MAGIC_FIELD = slice(257, 263)


def export_archive(
    reg: Registry, ref: str, destination: Path, *, principal: Principal, all_versions: bool = False
) -> ArchiveIndex:
    """Write what the reference means, or all versions of its adapter, into a new file that appears when it is whole.

    Raises NotFoundError, ConflictError (the file is there already), StorageError.
    """
    index, versions = describe(reg, ref, principal, all_versions=all_versions)
    if destination.exists():
        raise ConflictError(f"{destination} is there already. Choose another name.")
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        with partial.open("wb") as stream:
            _write(reg, index, versions, stream, principal, is_compressed=destination.suffix == ".gz")
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(destination)
    except OSError as error:
        raise StorageError(f"{destination} cannot be written ({error.strerror}).", path=destination) from error
    finally:
        partial.unlink(missing_ok=True)
    return index


def import_archive(
    reg: Registry,
    source: Path,
    *,
    principal: Principal,
    name: str | None = None,
    with_aliases: bool = False,
    register_bases: bool = False,
) -> Imported:
    """Publish every version of an archive, under its own name or another, and move the aliases if that is wanted.

    Importing again adds nothing. A version that is refused ends the import; those before it stay. Raises ArchiveError,
    RejectedAdapterError, PermissionDeniedError, StorageError.
    """
    with _opened(source) as stream, tempfile.TemporaryDirectory(prefix="loraplex-import-") as scratch:
        index = _read_index(stream)
        importer = Importer(reg, index, principal, name=name, register_bases=register_bases)
        for archived in index.versions:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                importer.take(archived, _extract(stream, archived, Path(folder) / "version"))
        if stream.read(BLOCK_BYTES).strip(b"\0"):
            raise ArchiveError("it goes on after its last version")
        return importer.finish(with_aliases=with_aliases)


def _write(
    reg: Registry,
    index: ArchiveIndex,
    versions: list[Version],
    stream: BinaryIO,
    principal: Principal,
    *,
    is_compressed: bool,
) -> None:
    with ExitStack() as stack:
        target: IO[bytes] = stream
        if is_compressed:
            target = stack.enter_context(
                cast(
                    "IO[bytes]",
                    gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=stream, mtime=0),
                )
            )
        tar = stack.enter_context(tarfile.open(fileobj=target, mode="w|", format=tarfile.USTAR_FORMAT))
        document = index.encode()
        for name, content in ((INDEX_NAME, document), (DIGEST_NAME, _digest_line(document))):
            tar.addfile(_header(name, len(content)), BytesIO(content))
        for version in versions:
            with pulled(reg, version, principal) as folder:
                for file in sorted(version.files):
                    with (folder / file.path).open("rb") as source:
                        tar.addfile(_header(f"versions/{version.number}/{file.path}", file.size), source)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header


@contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    """The archive's bytes, uncompressed as they are read and never in whole."""
    try:
        with ExitStack() as stack:
            stream: BinaryIO = stack.enter_context(source.open("rb"))
            is_compressed = stream.read(2) == GZIP_MAGIC
            stream.seek(0)
            if is_compressed:
                stream = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb")))
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArchiveError("its compression is damaged, or it is cut short") from error
    except OSError as error:
        raise StorageError(f"{source} cannot be read ({error.strerror}).", path=source) from error


def _read_index(stream: BinaryIO) -> ArchiveIndex:
    """The index, if it is the first member and its digest the second."""
    document = _small_member(stream, INDEX_NAME, INDEX_BYTES_LIMIT)
    if _small_member(stream, DIGEST_NAME, BLOCK_BYTES) != _digest_line(document):
        raise ArchiveError("its index is damaged")
    return ArchiveIndex.decode(document)


def _small_member(stream: BinaryIO, name: str, limit_bytes: int) -> bytes:
    path, size = _next_member(stream)
    if path != name or size > limit_bytes:
        raise ArchiveError(f"{name} is not where it belongs, or too large")
    content = _exactly(stream, size)
    _skip_padding(stream, size)
    return content


def _digest_line(document: bytes) -> bytes:
    return f"{hashlib.sha256(document).hexdigest()}  {INDEX_NAME}\n".encode()


def _extract(stream: BinaryIO, archived: ArchivedVersion, folder: Path) -> Path:
    """The next version's files, each where and as large as the index says."""
    folder.mkdir()
    for file in archived.files:
        path, size = _next_member(stream)
        if path != f"versions/{archived.number}/{file.path}" or size != file.size:
            raise ArchiveError(f"{path[:200]!r} with {size} bytes is not what the index announces")
        write_file(folder / file.path, size, stream.read, sha256=file.sha256)
        _skip_padding(stream, size)
    return folder


def _next_member(stream: BinaryIO) -> tuple[str, int]:
    """The path and size of the next member, which must be a plain file in a ustar header. Raises ArchiveError."""
    block = _exactly(stream, BLOCK_BYTES)
    unsummed = block[: SUM_FIELD.start] + b" " * 8 + block[SUM_FIELD.stop :]
    try:
        checksum = int(block[SUM_FIELD].strip(b" \0"), 8)
        size = int(block[SIZE_FIELD].strip(b" \0"), 8)
        name = block[NAME_FIELD].rstrip(b"\0").decode("ascii")
        prefix = block[PREFIX_FIELD].rstrip(b"\0").decode("ascii")
    except ValueError as error:
        raise ArchiveError("a header of it cannot be read") from error
    if block[MAGIC_FIELD] != b"ustar\0" or checksum != sum(unsummed) or size < 0:
        raise ArchiveError("a header of it is damaged, or it was made by another program")
    if block[TYPE_AT : TYPE_AT + 1] != PLAIN_FILE:
        raise ArchiveError("it holds something that is not a plain file")
    return (f"{prefix}/{name}" if prefix else name), size


def _skip_padding(stream: BinaryIO, size: int) -> None:
    _exactly(stream, -size % BLOCK_BYTES)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    found = stream.read(size)
    if len(found) != size:
        raise ArchiveError("it is cut short")
    return found
