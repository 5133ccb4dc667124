"""Downloads: /resolve/, with ranges and cache headers.

The ETag is git's name of a small file and the SHA-256 of a large one, as the tree lists them. A commit's files never
change, so an address with a full commit id may be kept for ever; everything else is asked about again. Where the blob
store signs addresses, a GET is sent there; HEAD is answered here, without reading the blob.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from registry.blobs import BlobReader
from registry.byte_range import ByteRange, UnsatisfiableRangeError, parse_range
from registry.file_entry import Blob
from registry.hub.context import Hub
from registry.hub.errors import EntryNotFoundError
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response
from registry.hub.routing import Access, Route
from registry.hub.tree import content_oid
from registry.principal import Principal
from registry.revisions import is_commit_id
from registry.trees import TreeFile

DOWNLOAD_SECONDS = 900
FOR_EVER = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"
_TEXT_SUFFIXES = (".json", ".md", ".txt", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".jinja", ".toml")


async def resolve(hub: Hub, request: Request) -> Response:
    """GET and HEAD /{id}/resolve/{revision}/{path}."""
    repo = Repo.of(request.values)
    asked, path = request.values["revision"], request.values["path"]
    file, headers = await hub.run(_find, hub, repo, asked, path, request.principal)
    if _is_known(request.headers.get("if-none-match"), headers["etag"]):
        return Response(304, headers)
    headers |= _content_headers(path)
    blob = Blob(file.sha256, file.size)
    if request.method == "GET":
        address = await hub.run(hub.registry.blobs.download_url, blob, seconds=DOWNLOAD_SECONDS)
        if address is not None:
            return Response(302, headers | {"location": address})
    try:
        asked_range = parse_range(_range_header(request, headers["etag"]), size=blob.size)
    except UnsatisfiableRangeError:
        return Response(416, headers | {"content-range": f"bytes */{blob.size}"})
    span = asked_range or ByteRange(0, blob.size)
    headers["content-length"] = str(span.end - span.start)
    if asked_range is not None:
        headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{blob.size}"
    status = 200 if asked_range is None else 206
    if request.method == "HEAD":
        return Response(status, headers)
    reader = await hub.run(hub.registry.blobs.open, blob, start=span.start, end=span.end)
    return Response(status, headers, pieces=_pieces(hub, reader))


def etag_of(hub: Hub, file: TreeFile) -> str:
    """The file's ETag, without quotes."""
    return file.sha256 if file.is_lfs else content_oid(hub, file)


def _find(hub: Hub, repo: Repo, asked: str, path: str, principal: Principal) -> tuple[TreeFile, dict[str, str]]:
    found = hub.registry.snapshots.file(repo.name, repo.revision(asked), path, principal)
    if found.file is None:
        raise EntryNotFoundError(path, commit_id=found.commit_id)
    return found.file, _headers(hub, found.file, found.commit_id, is_fixed=is_commit_id(asked))


def _headers(hub: Hub, file: TreeFile, commit_id: str, *, is_fixed: bool) -> dict[str, str]:
    etag = f'"{etag_of(hub, file)}"'
    return {
        "etag": etag,
        "x-linked-etag": etag,
        "x-linked-size": str(file.size),
        "x-repo-commit": commit_id,
        "accept-ranges": "bytes",
        "cache-control": FOR_EVER if is_fixed else ASK_AGAIN,
        "vary": "authorization",
    }


def _content_headers(path: str) -> dict[str, str]:
    """What the content is: data to be saved. A browser neither guesses another type nor runs anything of it."""
    name = path.rpartition("/")[2]
    is_text = name.endswith(_TEXT_SUFFIXES)
    return {
        "content-type": "text/plain; charset=utf-8" if is_text else "application/octet-stream",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
    }


def _is_known(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    known = {text.strip().removeprefix("W/") for text in if_none_match.split(",")}
    return "*" in known or etag in known


def _range_header(request: Request, etag: str) -> str | None:
    """The Range header, unless If-Range says that the client has a part of another content."""
    condition = request.headers.get("if-range")
    return request.headers.get("range") if condition is None or condition.strip() == etag else None


async def _pieces(hub: Hub, reader: BlobReader) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(hub.threads.read_all(iter(reader))) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        await hub.run(reader.close)


ROUTES = (
    Route("GET", "/{tenant}/{name}/resolve/{revision}/{path...}", resolve, Access.BROWSER),
    Route("HEAD", "/{tenant}/{name}/resolve/{revision}/{path...}", resolve, Access.BROWSER),
)
