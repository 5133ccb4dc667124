"""Branches, tags and commits."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.repo import Repo
from registry.hub.request import Request, decode_json
from registry.hub.response import Response, json_response, next_link
from registry.hub.routing import Route
from registry.hub.times import hub_time
from registry.hub.tree import is_true
from registry.refs import Ref

COMMITS_PAGE = 100
COMMITS_PAGE_LIMIT = 1_000

_Text = Annotated[str, msgspec.Meta(max_length=500)]
_Message = Annotated[str, msgspec.Meta(max_length=2_000)]


class NewBranch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of branch creation."""

    startingPoint: _Text | None = None  # noqa: N815 - the protocol's name


class NewTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of tag creation."""

    tag: _Text
    message: _Message | None = None


async def list_refs(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/refs: aliases are branches here, versions are tags."""
    repo = Repo.of(request.values)
    await _check_pin(hub, repo, request)
    refs = await hub.run(hub.registry.refs.all, repo.name, request.principal)
    document: dict[str, Any] = {
        "branches": [_ref(ref, "heads") for ref in refs.branches],
        "tags": [_ref(ref, "tags") for ref in refs.tags],
        "converts": [],
    }
    if is_true(dict(request.query()).get("include_prs")):
        document["pullRequests"] = []
    return json_response(document)


async def list_commits(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/commits/{revision}: newest first, by pages."""
    repo = Repo.of(request.values)
    fields = dict(request.query())
    limit = int(fields["limit"]) if fields.get("limit", "").isdecimal() else COMMITS_PAGE
    limit = max(1, min(limit, COMMITS_PAGE_LIMIT))
    below = int(fields["cursor"]) if fields.get("cursor", "").isdecimal() else None
    commits = await hub.run(
        hub.registry.snapshots.log,
        repo.name,
        repo.revision(request.values["revision"]),
        request.principal,
        limit=limit,
        below=below,
    )
    is_formatted = fields.get("expand[]") == "formatted"
    documents = []
    for commit in commits:
        document: dict[str, Any] = {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": hub_time(commit.created_at),
        }
        if is_formatted:
            document["formatted"] = {"title": _escaped(commit.title), "message": _escaped(commit.message)}
        documents.append(document)
    has_more = len(commits) == limit and commits[-1].parent_id is not None
    headers = next_link(request, {"cursor": str(commits[-1].sequence)}) if has_more else {}
    return json_response(documents, headers=headers)


async def create_branch(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/branch/{branch}."""
    repo = await _writable(hub, request, "make a branch of")
    body = decode_json(await request.body() or b"{}", NewBranch)
    branch = request.values["branch"]
    await hub.run(hub.registry.refs.create_branch, repo.name, branch, body.startingPoint, request.principal)
    return json_response({"name": branch, "ref": f"refs/heads/{branch}"}, status=201)


async def delete_branch(hub: Hub, request: Request) -> Response:
    """DELETE /api/models/{id}/branch/{branch}."""
    repo = await _writable(hub, request, "delete a branch of")
    await hub.run(hub.registry.refs.delete_branch, repo.name, request.values["branch"], request.principal)
    return json_response({})


async def create_tag(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/tag/{revision}."""
    repo = await _writable(hub, request, "make a tag of")
    body = await request.json(NewTag)
    await hub.run(
        hub.registry.refs.create_tag,
        repo.name,
        body.tag,
        request.values["revision"],
        body.message or "",
        request.principal,
    )
    return json_response({"name": body.tag, "ref": f"refs/tags/{body.tag}"})


async def delete_tag(hub: Hub, request: Request) -> Response:
    """DELETE /api/models/{id}/tag/{tag}."""
    repo = await _writable(hub, request, "delete a tag of")
    await hub.run(hub.registry.refs.delete_tag, repo.name, request.values["revision"], request.principal)
    return json_response({})


async def super_squash(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/super-squash/{branch}: refused, for history is what makes promotion explainable."""
    await _writable(hub, request, "squash")
    raise HubError(403, "Commits never change here, and versions and promotions refer to them: nothing was squashed.")


async def delete_lfs_files(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/lfs-files/batch: refused, as squashing is."""
    await _writable(hub, request, "rewrite")
    raise HubError(
        403, "Commits never change here. Delete the version or the adapter, and its files go by garbage collection."
    )


async def duplicate_lfs_files(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/lfs-files/duplicate: refused, so that the client uploads; equal bytes are stored once."""
    await hub.run(hub.registry.repositories.find, Repo.of(request.values).name, request.principal)
    raise HubError(501, "Server-side copies between repositories are not offered. Download the file and upload it.")


async def _writable(hub: Hub, request: Request, action: str) -> Repo:
    repo = Repo.of(request.values)
    await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    repo.require_whole(action)
    return repo


async def _check_pin(hub: Hub, repo: Repo, request: Request) -> None:
    """A pinned repository whose pin means nothing is not there."""
    if repo.pinned is not None:
        await hub.run(hub.registry.snapshots.log, repo.name, repo.revision(), request.principal, limit=1)


def _ref(ref: Ref, folder: str) -> dict[str, str]:
    return {"name": ref.name, "ref": f"refs/{folder}/{ref.name}", "targetCommit": ref.commit_id}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


ROUTES = (
    Route("GET", "/api/models/{tenant}/{name}/refs", list_refs),
    Route("GET", "/api/models/{tenant}/{name}/commits/{revision}", list_commits),
    Route("POST", "/api/models/{tenant}/{name}/branch/{branch}", create_branch),
    Route("DELETE", "/api/models/{tenant}/{name}/branch/{branch}", delete_branch),
    Route("POST", "/api/models/{tenant}/{name}/tag/{revision}", create_tag),
    Route("DELETE", "/api/models/{tenant}/{name}/tag/{revision}", delete_tag),
    Route("POST", "/api/models/{tenant}/{name}/super-squash/{branch}", super_squash),
    Route("POST", "/api/models/{tenant}/{name}/lfs-files/batch", delete_lfs_files),
    Route("POST", "/api/models/{tenant}/{name}/lfs-files/duplicate", duplicate_lfs_files),
)
