"""The files of a revision: the tree, single paths, and the large files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from registry.errors import InvalidValueError, NotFoundError
from registry.file_entry import Blob
from registry.hub.context import Hub
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response, next_link
from registry.hub.routing import Route
from registry.hub.times import hub_time
from registry.principal import Principal
from registry.snapshots import Snapshot
from registry.trees import Commit, TreeFile, git_oid, lfs_pointer

PAGE = 1_000
PATHS_LIMIT = 1_000
SAFE = {"status": "safe", "avScan": None, "pickleImportScan": None}
"""No file here holds a pickle; adapters are judged when they are committed."""


async def list_tree(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/tree/{revision}[/{path}]: files and folders, by pages."""
    repo = Repo.of(request.values)
    folder = request.values.get("path", "").strip("/")
    fields = dict(request.query())
    snapshot = await hub.run(
        hub.registry.snapshots.at, repo.name, repo.revision(request.values["revision"]), request.principal
    )
    prefix = f"{folder}/" if folder else ""
    if prefix and not any(path.startswith(prefix) for path in snapshot.files):
        raise missing_entry(folder)
    items = _items(snapshot, prefix, is_recursive=is_true(fields.get("recursive")))
    page, cursor = _page(items, fields)
    headers = {"x-repo-commit": snapshot.commit.id}
    if cursor is not None:
        headers |= next_link(request, {"cursor": cursor})
    is_expanded = is_true(fields.get("expand"))
    documents = await hub.run(_documents, hub, repo, snapshot, page, request.principal, is_expanded=is_expanded)
    return json_response(documents, headers=headers)


async def paths_info(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/paths-info/{revision}: those of the named paths that exist."""
    repo = Repo.of(request.values)
    fields = await request.form(fields_limit=PATHS_LIMIT + 16)
    paths = [value.strip("/") for key, value in fields if key == "paths"]
    if len(paths) > PATHS_LIMIT:
        raise InvalidValueError("paths", f"there are more than {PATHS_LIMIT:,}")
    snapshot = await hub.run(
        hub.registry.snapshots.at, repo.name, repo.revision(request.values["revision"]), request.principal
    )
    folders = {path for path in paths if any(name.startswith(f"{path}/") for name in snapshot.files)}
    found: list[str | TreeFile] = []
    for path in dict.fromkeys(paths):
        if path in snapshot.files:
            found.append(snapshot.files[path])
        elif path in folders:
            found.append(path)
    is_expanded = is_true(dict(fields).get("expand"))
    documents = await hub.run(_documents, hub, repo, snapshot, found, request.principal, is_expanded=is_expanded)
    return json_response(documents, headers={"x-repo-commit": snapshot.commit.id})


async def list_lfs_files(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/lfs-files: the large files of the main branch."""
    repo = Repo.of(request.values)
    snapshot = await hub.run(hub.registry.snapshots.at, repo.name, repo.revision(), request.principal)
    return json_response(
        [
            {
                "fileOid": file.sha256,
                "filename": file.path,
                "oid": file.sha256,
                "pushedAt": hub_time(snapshot.commit.created_at),
                "ref": "refs/heads/main",
                "size": file.size,
            }
            for file in snapshot.files.values()
            if file.is_lfs
        ]
    )


def content_oid(hub: Hub, file: TreeFile) -> str:
    """Git's name of the file; of those that were published before there were commits it is computed now."""
    if file.git_oid is None:
        return git_oid(hub.registry.blobs.read(Blob(file.sha256, file.size)))
    return file.git_oid


def lfs_info(file: TreeFile) -> dict[str, Any]:
    """What a listing says of a large file."""
    return {
        "oid": file.sha256,
        "sha256": file.sha256,
        "size": file.size,
        "pointerSize": len(lfs_pointer(file.sha256, file.size)),
    }


def missing_entry(path: str) -> NotFoundError:
    """The error for a file or folder that a commit does not have."""
    return NotFoundError("entry", path[:200], "List the repository's files to see those it has.")


def is_true(text: str | None) -> bool:
    """A flag of a query or a form, as Python clients write it."""
    return text is not None and text.lower() in ("true", "1")


def _items(snapshot: Snapshot, prefix: str, *, is_recursive: bool) -> list[str | TreeFile]:
    """Folders (as text) and files below the prefix, each folder before what is in it."""
    items: dict[str, str | TreeFile] = {}
    for path, file in snapshot.files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if is_recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            items[folder] = folder
        if is_recursive or len(parts) == 1:
            items[path] = file
    return [items[path] for path in sorted(items)]


def _page(items: list[str | TreeFile], fields: Mapping[str, str]) -> tuple[list[str | TreeFile], str | None]:
    after = _decode_cursor(fields["cursor"]) if "cursor" in fields else None
    limit = int(fields["limit"]) if fields.get("limit", "").isdecimal() else PAGE
    left = items if after is None else [item for item in items if _path_of(item) > after]
    page = left[: max(1, min(limit, PAGE))]
    return page, _encode_cursor(_path_of(page[-1])) if len(left) > len(page) else None


def _encode_cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode("ascii")


def _decode_cursor(text: str) -> str:
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidValueError("cursor", "it is none that this registry gave out") from error


def _path_of(item: str | TreeFile) -> str:
    return item if isinstance(item, str) else item.path


def _documents(
    hub: Hub,
    repo: Repo,
    snapshot: Snapshot,
    items: Iterable[str | TreeFile],
    principal: Principal,
    *,
    is_expanded: bool,
) -> list[dict[str, Any]]:
    documents = [_document(hub, snapshot, item) for item in items]
    if is_expanded:
        changes = hub.registry.snapshots.last_changes(repo.name, snapshot.commit.id, principal)
        for document in documents:
            last = _last_change(changes, document["path"])
            document["lastCommit"] = {"id": last.id, "title": last.title, "date": hub_time(last.created_at)}
            if document["type"] == "file":
                document["securityFileStatus"] = SAFE
    return documents


def _document(hub: Hub, snapshot: Snapshot, item: str | TreeFile) -> dict[str, Any]:
    if isinstance(item, str):
        return {"type": "directory", "oid": _folder_oid(snapshot, item), "size": 0, "path": item}
    document = {"type": "file", "oid": content_oid(hub, item), "size": item.size, "path": item.path}
    return document | ({"lfs": lfs_info(item)} if item.is_lfs else {})


def _last_change(changes: Mapping[str, Commit], path: str) -> Commit:
    """Of a file, or the latest of any file in a folder."""
    if path in changes:
        return changes[path]
    below = [commit for name, commit in changes.items() if name.startswith(f"{path}/")]
    return max(below, key=lambda commit: commit.sequence)


def _folder_oid(snapshot: Snapshot, folder: str) -> str:
    """A name of the folder's content: not git's, but equal for equal content."""
    below = [f"{path}\0{file.sha256}" for path, file in snapshot.files.items() if path.startswith(f"{folder}/")]
    return git_oid("\n".join(below).encode())


ROUTES = (
    Route("GET", "/api/models/{tenant}/{name}/tree/{revision}", list_tree),
    Route("GET", "/api/models/{tenant}/{name}/tree/{revision}/{path...}", list_tree),
    Route("POST", "/api/models/{tenant}/{name}/paths-info/{revision}", paths_info),
    Route("GET", "/api/models/{tenant}/{name}/lfs-files", list_lfs_files),
)
