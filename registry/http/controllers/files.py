"""The files of a version: downloaded with Range and ETag, each byte verified."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from litestar import Controller, Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, PathParameter
from litestar.response import Stream

from registry.adapter_files import NAME_CHARACTERS_LIMIT
from registry.blobs import BlobReader
from registry.byte_range import ByteRange, UnsatisfiableRangeError, parse_range
from registry.file_entry import FileEntry
from registry.http.parameters import NamePart, TenantPart, VersionPart
from registry.http.service import RegistryService, caller_of, service_of
from registry.pull import find_file
from registry.registry import Registry
from registry.version import Version

FilePart = Annotated[str, PathParameter(max_length=NAME_CHARACTERS_LIMIT, description="A file of the version.")]
RangeHeader = Annotated[
    str | None, HeaderParameter(name="range", max_length=100, description="One range of bytes, `bytes=0-99`.")
]
IfRangeHeader = Annotated[
    str | None, HeaderParameter(name="if-range", max_length=100, description="The range is meant for this ETag.")
]
IfNoneMatchHeader = Annotated[
    str | None, HeaderParameter(name="if-none-match", max_length=400, description="ETags that the caller has.")
]
BYTES = "application/octet-stream"


class FileController(Controller):
    """Files of one version. Their ETag is their SHA-256."""

    path = "/adapters/{tenant:str}/{name:str}/versions/{version:str}/files"
    tags = ("files",)

    @get(sync_to_thread=True)
    def list_files(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, version: VersionPart
    ) -> list[FileEntry]:
        """The files of a version, with their sizes and digests."""
        found = service_of(request).registry.resolve(f"{tenant}/{name}@{version}", principal=caller_of(request))
        return list(found.files)

    @get(
        "/{file:str}",
        media_type=BYTES,
        responses={
            206: ResponseSpec(bytes, generate_examples=False, description="The range.", media_type=BYTES),
            304: ResponseSpec(None, generate_examples=False, description="The caller has it."),
            416: ResponseSpec(None, generate_examples=False, description="The range begins behind the last byte."),
        },
    )
    async def download(
        self,
        request: Request[Any, Any, Any],
        tenant: TenantPart,
        name: NamePart,
        version: VersionPart,
        file: FilePart,
        range_header: RangeHeader = None,
        if_range: IfRangeHeader = None,
        if_none_match: IfNoneMatchHeader = None,
    ) -> Response[bytes] | Stream:
        """The bytes of a file, or a range of them. They are verified before the first one is sent."""
        service = service_of(request)
        ref = f"{tenant}/{name}@{version}"
        found = await service.transfers.run(service.registry.resolve, ref, principal=caller_of(request))
        entry = find_file(found, file)
        etag = f'"{entry.sha256}"'
        headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": "private, no-cache"}
        if if_none_match is not None and (etag in if_none_match or if_none_match.strip() == "*"):
            return Response(b"", status_code=304, headers=headers, media_type=BYTES)
        try:
            asked = parse_range(range_header if if_range in (None, etag) else None, size=entry.size)
        except UnsatisfiableRangeError:
            headers["content-range"] = f"bytes */{entry.size}"
            return Response(b"", status_code=416, headers=headers, media_type=BYTES)
        return await _stream(service, found, entry, asked, headers)


async def _stream(
    service: RegistryService, version: Version, entry: FileEntry, asked: ByteRange | None, headers: dict[str, str]
) -> Stream:
    part = asked or ByteRange(0, entry.size)
    reader = await service.transfers.run(_open, service.registry, version, entry, part)
    headers["content-length"] = str(part.end - part.start)
    if asked is not None:
        headers["content-range"] = f"bytes {part.start}-{part.end - 1}/{entry.size}"
    status = 200 if asked is None else 206
    return Stream(_chunks(service, reader), status_code=status, headers=headers, media_type=BYTES)


def _open(registry: Registry, version: Version, entry: FileEntry, part: ByteRange) -> BlobReader:
    return registry.open_file(version, entry.path, start=part.start, end=part.end)


async def _chunks(service: RegistryService, reader: BlobReader) -> AsyncIterator[bytes]:
    try:
        async with aclosing(service.transfers.read_all(iter(reader))) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        reader.close()
