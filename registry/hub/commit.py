"""Commits: lines of JSON, one operation each; small files come inline and go to the disk as they arrive.

The body is read line by line, so that a commit of hundreds of megabytes takes the memory of its largest line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import msgspec

from registry.blobs.staging_area import explained
from registry.errors import InvalidValueError, RegistryError
from registry.failpoints import reach
from registry.file_entry import Blob
from registry.hub.context import Hub
from registry.hub.errors import BodyTooLargeError
from registry.hub.preupload import refuse_pull_request
from registry.hub.repo import Repo
from registry.hub.request import Request, decode_json
from registry.hub.response import Response, json_response, warning_header
from registry.hub.routing import Route
from registry.tree_changes import AddFile, AddLarge, DeleteFile, DeleteFolder, Operation
from registry.tree_paths import PATH_CHARACTERS, check_beginning, check_kind, check_path
from registry.trees import TreeFile, git_oid

INLINE_BYTES_LIMIT = 10_000_000
LINE_BYTES_LIMIT = INLINE_BYTES_LIMIT // 3 * 4 + 16_384
LINES_LIMIT = 25_001

_Path = Annotated[str, msgspec.Meta(max_length=PATH_CHARACTERS + 1)]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line: what it is, and its content."""

    key: str
    value: msgspec.Raw


class Header(msgspec.Struct, frozen=True, rename={"parent_commit": "parentCommit"}):
    """The first line."""

    summary: str
    description: str = ""
    parent_commit: str | None = None


class InlineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A small file with its content."""

    path: _Path
    content: str
    encoding: Literal["base64", "utf-8"] = "utf-8"


class LargeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file whose content was uploaded before; without `size` it is a copy."""

    path: _Path
    oid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    algo: Literal["sha256"] = "sha256"
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] | None = None


class Deleted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file or a folder to delete."""

    path: _Path


@dataclass
class _Draft:
    """A commit as it is read. `_Reader` fills it."""

    header: Header | None = None
    operations: list[Operation] = field(default_factory=list)
    contents: dict[Blob, Path] = field(default_factory=dict)


async def commit(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/commit/{revision}."""
    repo = Repo.of(request.values)
    repo.require_whole("commit to")
    refuse_pull_request(request)
    await hub.run(hub.registry.commits.tree_to_change, repo.name, request.values["revision"], request.principal)
    draft = _Draft()
    scratch = hub.registry.blobs.scratch
    with explained(scratch):
        contents = TemporaryDirectory(prefix="commit-", dir=scratch, ignore_cleanup_errors=True)
    with contents as folder:
        lines = 0
        async for line in _lines(request, limit_bytes=hub.settings.commit_bytes_limit):
            lines += 1
            if lines > LINES_LIMIT:
                raise InvalidValueError("body", f"it has more than {LINES_LIMIT:,} lines")
            await hub.run(_take_line, draft, line, Path(folder))
        return await hub.run(_apply, hub, request, repo, draft)


async def _lines(request: Request, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """The lines of the body that are not empty. Raises BodyTooLargeError, InvalidValueError."""
    gathered = bytearray()
    async for piece in request.pieces(limit_bytes=limit_bytes):
        searched = len(gathered)
        gathered += piece
        while (end := gathered.find(b"\n", searched)) >= 0:
            if line := bytes(gathered[:end]).strip():
                yield line
            del gathered[: end + 1]
            searched = 0
        if len(gathered) > LINE_BYTES_LIMIT:
            raise BodyTooLargeError(LINE_BYTES_LIMIT)
    if line := bytes(gathered).strip():
        yield line


def _take_line(draft: _Draft, raw: bytes, folder: Path) -> None:
    line = decode_json(raw, Line)
    if line.key == "header":
        if draft.header is not None:
            raise InvalidValueError("body", "it has two headers")
        draft.header = decode_json(bytes(line.value), Header)
    elif line.key == "file":
        draft.operations.append(_take_content(draft, decode_json(bytes(line.value), InlineFile), folder))
    elif line.key == "lfsFile":
        large = decode_json(bytes(line.value), LargeFile)
        draft.operations.append(AddLarge(large.path, large.oid, large.size))
    elif line.key == "deletedFile":
        draft.operations.append(DeleteFile(decode_json(bytes(line.value), Deleted).path))
    elif line.key == "deletedFolder":
        draft.operations.append(DeleteFolder(decode_json(bytes(line.value), Deleted).path))
    else:
        raise InvalidValueError("key", f"{line.key[:40]!r} is no operation of a commit")


def _take_content(draft: _Draft, file: InlineFile, folder: Path) -> AddFile:
    """Put a small file's content aside, to be stored when the whole commit was read."""
    check_kind(check_path(file.path))
    content = _decode(file)
    if len(content) > INLINE_BYTES_LIMIT:
        raise InvalidValueError("content", f"{file.path!r} is over {INLINE_BYTES_LIMIT:,} bytes; upload it by LFS")
    check_beginning(file.path, content)
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    if blob not in draft.contents:
        draft.contents[blob] = folder / blob.sha256
        with explained(draft.contents[blob]):
            draft.contents[blob].write_bytes(content)
    return AddFile(TreeFile(file.path, blob.size, blob.sha256, False, git_oid(content)))


def _decode(file: InlineFile) -> bytes:
    if file.encoding == "utf-8":
        return file.content.encode()
    try:
        return base64.b64decode(file.content, validate=True)
    except binascii.Error as error:
        raise InvalidValueError("content", f"that of {file.path!r} is not base64") from error


def _apply(hub: Hub, request: Request, repo: Repo, draft: _Draft) -> Response:
    if draft.header is None:
        raise InvalidValueError("body", "it has no header line")
    registry, tenant = hub.registry, repo.name.tenant
    sizes = [(blob.sha256, blob.size) for blob in draft.contents]
    reservation = registry.quotas.reserve(tenant, sizes, principal=request.principal)
    reach("commit.after_reserve")
    try:
        present = registry.quotas.present(tenant, [sha256 for sha256, _ in sizes])
        missing = {blob: path for blob, path in draft.contents.items() if blob.sha256 not in present}
        for blob, path in missing.items():
            registry.blobs.put_file(path, blob)
        reach("commit.after_store")
        registry.quotas.mark_stored(tenant, [(blob.sha256, blob.size) for blob in missing])
        outcome = registry.commits.apply(
            repo.name,
            request.values["revision"],
            draft.operations,
            parent=draft.header.parent_commit,
            title=draft.header.summary,
            message=draft.header.description,
            principal=request.principal,
        )
    except RegistryError:
        registry.quotas.release(reservation)
        raise
    document = {
        "success": True,
        "commitOid": outcome.commit.id,
        "commitUrl": f"{request.base_url}/{repo.id}/commit/{outcome.commit.id}",
        "hookOutput": "",
    }
    refusal = outcome.refusal
    which = f"commit {outcome.commit.id[:7]} of {repo.id}"
    headers = {} if refusal is None else warning_header("version", f"{which} is no version: {refusal}")
    return json_response(document, headers=headers)


ROUTES = (Route("POST", "/api/models/{tenant}/{name}/commit/{revision}", commit),)
