"""What a browser is shown at the addresses that Hub clients print: an adapter, its files, a commit.

    /{id}   /{id}/tree/{revision}[/{folder}]   /{id}/commit/{revision}   /{id}/blob/{revision}/{path}

Only who asks for `text/html` gets a page; to all others there is nothing at these addresses. A page reads and never
changes anything, runs no script and fetches nothing. What adapters and people wrote stands in it as plain text: the
template escapes every value (`page.html`), and no file of an adapter is rendered.

The root's and a tenant's page are in `overview.py`. A browser has no bearer token: on the routes of pages and for
downloads it may send the token as a password (HTTP Basic), for which it is asked. Without a valid one, every
repository looks alike.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote

from registry.base import BaseRecord
from registry.errors import NotFoundError
from registry.hub.context import Hub
from registry.hub.errors import Failure
from registry.hub.page import Page, html_response
from registry.hub.repo import Repo
from registry.hub.request import Request, Scope, raw_path_of
from registry.hub.response import Response
from registry.hub.routing import Access, Route
from registry.hub.tree import missing_entry
from registry.lineage import NodeKind, Relation
from registry.names import RESERVED_TENANTS
from registry.principal import Principal
from registry.snapshots import Snapshot
from registry.trees import DEFAULT_BRANCH, TreeFile
from registry.version import Canary, Version

VERSIONS_SHOWN = 25
FILES_SHOWN = 500
RELATIVES_SHOWN = 20

_PAGE = re.compile(rb"/|/([a-z0-9-]+)/?|/([^/]+)/[^/]+(?:/(?:tree|commit|blob)/.+)?/?")
_HTML = re.compile(r"(?:^|,)\s*text/html\s*(?:;(?!\s*q=0(?:\.0*)?\s*(?:,|$))[^,]*)?(?:,|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Relative:
    """A version that this one came from, or that came from it. No names: the reader may not see any."""

    relation: str
    names: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class AdapterPage:
    """What is known of an adapter at a revision, as the template shows it."""

    repo: Repo
    asked: str
    snapshot: Snapshot
    is_commit: bool
    folder: str
    files: tuple[TreeFile, ...]
    files_total: int
    base: BaseRecord | None
    versions: tuple[Version, ...]
    has_more_versions: bool
    aliases: dict[str, int]
    canaries: dict[str, Canary]
    relatives: tuple[Relative, ...]


def is_asked(scope: Scope) -> bool:
    """Whether a request is a browser's for a page."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    found = _PAGE.fullmatch(raw_path_of(scope))
    if found is None or (found[1] or found[2] or b"").decode("latin-1") in RESERVED_TENANTS:
        return False
    accepted = (value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"accept")
    return any(_HTML.search(value) for value in accepted)


def with_bearer(scope: Scope) -> Scope:
    """The request with a token that came as the password of HTTP Basic where bearer tokens stand."""
    headers = [
        (name, _bearer(value) if name.lower() == b"authorization" else value) for name, value in scope["headers"]
    ]
    return dict(scope) | {"headers": headers}


async def show_adapter(hub: Hub, request: Request) -> Response:
    """GET /{id}, /{id}/tree/{revision}[/{folder}] and /{id}/commit/{revision}."""
    repo = Repo.of(request.values)
    asked = request.values.get("revision", repo.pinned or DEFAULT_BRANCH)
    folder = request.values.get("path", "").strip("/")
    is_commit = request.raw_path.split(b"/")[3:4] == [b"commit"]
    page = await hub.run(_gather, hub, repo, asked, folder, request.principal, is_commit=is_commit)
    return html_response(Page("adapter.html", 200, {"page": page, "url": request.base_url}))


async def show_file(hub: Hub, request: Request) -> Response:
    """GET /{id}/blob/{revision}/{path}: what is known of a file, and how it is downloaded."""
    repo = Repo.of(request.values)
    asked, path = request.values["revision"], request.values["path"]
    found = await hub.run(hub.registry.snapshots.file, repo.name, repo.revision(asked), path, request.principal)
    if found.file is None:
        raise missing_entry(path)
    download = f"/{repo.id}/resolve/{quote(asked, safe='')}/{quote(path)}"
    shown = {"repo": repo, "asked": asked, "file": found.file, "commit_id": found.commit_id, "download": download}
    return html_response(Page("file.html", 200, shown | {"url": request.base_url}))


def failure_page(failure: Failure) -> Response:
    """An error for people. Who sent no valid token is asked for one, the same for every address."""
    headers = {"www-authenticate": 'Basic realm="Loraplex", charset="UTF-8"'} if failure.status == 401 else {}
    return html_response(Page("failure.html", failure.status, {"failure": failure}), headers)


def _gather(hub: Hub, repo: Repo, asked: str, folder: str, principal: Principal, *, is_commit: bool) -> AdapterPage:
    reg, name = hub.registry, str(repo.name)
    snapshot = reg.snapshots.at(repo.name, repo.revision(asked), principal)
    prefix = f"{folder}/" if folder else ""
    files = [file for path, file in snapshot.files.items() if path.startswith(prefix)]
    if folder and not files:
        raise missing_entry(folder)
    version = snapshot.version
    versions = reg.page_versions(name, principal, limit=VERSIONS_SHOWN)
    return AdapterPage(
        repo=repo,
        asked=asked,
        snapshot=snapshot,
        is_commit=is_commit,
        folder=folder,
        files=tuple(files[:FILES_SHOWN]),
        files_total=len(files),
        base=None if version is None else reg.base(version.base_fingerprint),
        versions=versions.items,
        has_more_versions=versions.next_cursor is not None,
        aliases=reg.aliases(name, principal),
        canaries={canary.alias: canary for canary in reg.canaries(name, principal)},
        relatives=() if version is None else _relatives(hub, version, principal),
    )


def _relatives(hub: Hub, version: Version, principal: Principal) -> tuple[Relative, ...]:
    """The versions next to this one in its lineage, those that it was made of first."""
    try:
        graph = hub.registry.lineage(f"{version.adapter}@{version.number}", principal, depth=1)
    except NotFoundError:  # deleted since its commit was read
        return ()
    words = {
        (Relation.PARENT, True): "trained from",
        (Relation.EXPERT, True): "chooses among",
        (Relation.PARENT, False): "parent of",
        (Relation.EXPERT, False): "expert of",
    }
    names = {node.node_id: node.names for node in graph.nodes if node.kind is NodeKind.VERSION}
    found = []
    for edge in graph.edges:
        is_source = edge.source == graph.root
        other = edge.target if is_source else edge.source
        if graph.root in (edge.source, edge.target) and other in names and (edge.relation, is_source) in words:
            found.append(Relative(words[edge.relation, is_source], names[other], other))
    order = list(words.values())
    return tuple(sorted(found, key=lambda relative: order.index(relative.relation))[:RELATIVES_SHOWN])


def _bearer(authorization: bytes) -> bytes:
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return authorization
    try:
        _, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return authorization
    return b"Bearer " + password if colon else authorization


ROUTES = tuple(
    Route(method, pattern, handler, Access.BROWSER)
    for method in ("GET", "HEAD")
    for pattern, handler in (
        ("/{tenant}/{name}", show_adapter),
        ("/{tenant}/{name}/tree/{revision}", show_adapter),
        ("/{tenant}/{name}/tree/{revision}/{path...}", show_adapter),
        ("/{tenant}/{name}/commit/{revision}", show_adapter),
        ("/{tenant}/{name}/blob/{revision}/{path...}", show_file),
    )
)
