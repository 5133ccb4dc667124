"""Before an upload: which files go inline in the commit, which as large files, and which are left out.

Nothing is reserved here: a client asks here about files that it may not send after all. Room is reserved for what it
does send, by the LFS batch, by Xet, and by the commit for what comes inline.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec

from registry.errors import InvalidValueError, QuotaExceededError
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.gitignore import GitIgnore
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response, warning_header
from registry.hub.routing import Route
from registry.hub.tree import content_oid
from registry.principal import OPERATOR
from registry.tree_paths import PATH_CHARACTERS, check_beginning, check_kind, check_path, is_byproduct
from registry.trees import TreeFile, is_large

FILES_LIMIT = 1_000
NAMES_SHOWN = 5

_Sample = Annotated[str, msgspec.Meta(max_length=4_096)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class Announced(msgspec.Struct, frozen=True):
    """A file that the client would like to send; `sample` are its first bytes in base64."""

    path: Annotated[str, msgspec.Meta(max_length=PATH_CHARACTERS)]
    size: _Size
    sample: _Sample = ""


class Preupload(msgspec.Struct, frozen=True, rename={"git_ignore": "gitIgnore"}):
    """Body of preupload."""

    files: Annotated[tuple[Announced, ...], msgspec.Meta(max_length=FILES_LIMIT)]
    git_ignore: Annotated[str, msgspec.Meta(max_length=100_000)] | None = None


async def preupload(hub: Hub, request: Request) -> Response:
    """POST /api/models/{id}/preupload/{revision}."""
    repo = Repo.of(request.values)
    repo.require_whole("upload to")
    refuse_pull_request(request)
    body = await request.json(Preupload)
    tree = await hub.run(hub.registry.commits.tree_to_change, repo.name, request.values["revision"], request.principal)
    ignore = GitIgnore(body.git_ignore or "")
    documents = await hub.run(lambda: [_answer(hub, file, tree, ignore) for file in body.files])
    left_out = [file.path for file in body.files if is_byproduct(file.path)]
    large = [
        file
        for file, document in zip(body.files, documents, strict=True)
        if document["uploadMode"] == "lfs" and not document["shouldIgnore"] and not _may_be_there(file, tree)
    ]
    shortage = await hub.run(_shortage, hub, repo.name.tenant, [file.size for file in large])
    return json_response({"files": documents}, headers=shortage or _warning(left_out))


def refuse_pull_request(request: Request) -> None:
    """Raises HubError where the client asks for a pull request."""
    if dict(request.query()).get("create_pr") in ("1", "true", "True"):
        raise HubError(501, "This registry has no pull requests. Commit to a branch of its own: `revision=BRANCH`.")


def _may_be_there(file: Announced, tree: dict[str, TreeFile]) -> bool:
    present = tree.get(file.path)
    return present is not None and present.size == file.size


def _shortage(hub: Hub, tenant: str, sizes: list[int]) -> dict[str, str]:
    """A warning where the files may not fit into the quota; by Xet, clients do not show why they fail later.

    What does fit is known when the digests are: the tenant may have some of the files already. Raises
    QuotaExceededError where one file alone is larger than the whole quota.
    """
    usage = hub.registry.quotas.usage(tenant, principal=OPERATOR) if sizes else None
    if usage is None or usage.quota_bytes is None or usage.used_bytes + sum(sizes) <= usage.quota_bytes:
        return {}
    error = QuotaExceededError(tenant, "bytes", quota=usage.quota_bytes, used=usage.used_bytes, asked=sum(sizes))
    if max(sizes) > usage.quota_bytes:
        raise error
    return warning_header("quota", f"if these files are new, the upload will fail. {error.message}")


def _answer(hub: Hub, file: Announced, tree: dict[str, TreeFile], ignore: GitIgnore) -> dict[str, Any]:
    path = check_path(file.path)
    is_left_out = is_byproduct(path) or ignore.ignores(path)
    sample = _decode(file)
    if not is_left_out:
        check_kind(path)
        check_beginning(path, sample)
    mode = "lfs" if file.size and (is_large(path, file.size) or b"\0" in sample) else "regular"
    present = tree.get(path)
    oid = None if present is None else (present.sha256 if mode == "lfs" else content_oid(hub, present))
    if present is not None and present.is_lfs != (mode == "lfs"):
        oid = None
    document = {"path": path, "uploadMode": mode, "shouldIgnore": is_left_out}
    return document if oid is None else document | {"oid": oid}


def _decode(file: Announced) -> bytes:
    try:
        return base64.b64decode(file.sample, validate=True)
    except binascii.Error as error:
        raise InvalidValueError("sample", f"that of {file.path[:100]!r} is not base64") from error


def _warning(left_out: list[str]) -> dict[str, str]:
    if not left_out:
        return {}
    shown = ", ".join(left_out[:NAMES_SHOWN]) + (", ..." if len(left_out) > NAMES_SHOWN else "")
    return warning_header("left-out", f"not uploaded, for they belong to the training run, not the adapter: {shown}")


ROUTES = (Route("POST", "/api/models/{tenant}/{name}/preupload/{revision}", preupload),)
