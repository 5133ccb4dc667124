"""What a repository is: model info at a revision, and the listing of all that the caller may read."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec

from registry.base import BaseRecord
from registry.cards import card_metadata
from registry.decoding import decode
from registry.errors import InvalidValueError, NotFoundError
from registry.hub.card import CARD_BYTES_LIMIT, CARD_FILE, CardError, read_card
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response, next_link
from registry.hub.routing import Access, Route
from registry.hub.times import hub_time
from registry.hub.tree import content_oid, is_true, lfs_info
from registry.principal import Principal
from registry.repositories import Order, Position, Repository
from registry.snapshots import Snapshot
from registry.version import Version, Visibility

CHECKED_BYTES_LIMIT = 2_000_000
"""A card that is sent to be checked, as JSON."""
PAGE = 100
PAGE_LIMIT = 1_000
FULL_PAGE_LIMIT = 100
"""Where each repository's files are looked at."""
SCANNED_LIMIT = 5_000
"""A page of a filtered listing looks at so many repositories, and then says where to go on."""

CARD_PATH = "/registry/v1/card"
"""Where the REST face gives a version's generated card."""

_SORTS = {"lastModified": Order.UPDATED, "createdAt": Order.CREATED}
_LISTED_FIELDS = frozenset("search author filter sort direction limit full cardData config expand cursor".split())
_FIELDS = frozenset(
    "author baseModels cardData config createdAt disabled downloads gated lastModified library_name "
    "likes pipeline_tag private safetensors sha siblings tags usedStorage xetEnabled".split()
)
_UNKNOWN_HERE = frozenset(
    "childrenModelCount downloadsAllTime evalResults gguf inference inferenceProviderMapping mask_token model-index "
    "resourceGroup spaces transformersInfo trendingScore widgetData".split()
)
"""What clients may ask for by name and a registry of adapters cannot say: null."""
_DEEP = frozenset("cardData config library_name pipeline_tag safetensors siblings tags usedStorage".split())
"""What only a repository's files say, in whole or in part."""


class YamlCheck(msgspec.Struct, frozen=True, rename={"repo_type": "repoType"}):
    """Body of validate-yaml."""

    content: Annotated[str, msgspec.Meta(max_length=CHECKED_BYTES_LIMIT)]
    repo_type: str = "model"


async def model_info(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}[/revision/{revision}]."""
    repo = Repo.of(request.values)
    revision = repo.revision(request.values.get("revision", "main"))
    query = request.query()
    wanted = _expanded(query)
    has_sizes = is_true(dict(query).get("blobs"))
    document = await hub.run(_info, hub, repo, revision, request.principal, has_sizes=has_sizes)
    return json_response(_select(document, wanted), headers={"x-repo-commit": document["sha"]})


async def list_models(hub: Hub, request: Request) -> Response:
    """GET /api/models."""
    query = request.query()
    fields = dict(query)
    if unknown := sorted(fields.keys() - _LISTED_FIELDS):
        raise HubError(400, f"This registry's listing has no filter {unknown[0][:40]!r}.")
    tags = frozenset(tag for key, value in query if key == "filter" for tag in value.split(",") if tag)
    limit = int(fields["limit"]) if fields.get("limit", "").isdecimal() else PAGE
    documents, cursor = await hub.run(
        _list, hub, request.principal, fields, tags, _expanded(query), max(1, min(limit, PAGE_LIMIT))
    )
    headers = {} if cursor is None else next_link(request, {"cursor": cursor})
    return json_response(documents, headers=headers)


async def validate_yaml(hub: Hub, request: Request) -> Response:
    """POST /api/validate-yaml: whether a card's metadata can be read. Clients ask without their token."""
    body = await request.json(YamlCheck, limit_bytes=CHECKED_BYTES_LIMIT)
    try:
        await hub.run(read_card, body.content.encode("utf-8", "replace")[: CARD_BYTES_LIMIT + 1])
    except CardError as error:
        return json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    return json_response({"errors": [], "warnings": []})


def _info(hub: Hub, repo: Repo, revision: str, principal: Principal, *, has_sizes: bool) -> dict[str, Any]:
    snapshot = hub.registry.snapshots.at(repo.name, revision, principal)
    repository = hub.registry.repositories.find(repo.name, principal)
    version = snapshot.version
    card = hub.facts.card(snapshot)
    base = None if version is None else hub.registry.base(version.base_fingerprint)
    document = _document(repo.id, repository, base, card)
    if version is not None and version.experts:
        document |= _of_mixture(document, card or {})
    document |= {
        "sha": snapshot.commit.id,
        "siblings": _siblings(hub, snapshot, has_sizes=has_sizes),
        "config": hub.facts.config(snapshot),
        "safetensors": hub.facts.parameters(snapshot),
        "usedStorage": sum({file.sha256: file.size for file in snapshot.files.values()}.values()),
        "loraplex": None if version is None else _version(version),
    }
    if version is not None and base is not None and CARD_FILE not in snapshot.files:
        document["cardData"] = card_metadata(version, base)
    return document


def _list(
    hub: Hub,
    principal: Principal,
    fields: Mapping[str, str],
    tags: frozenset[str],
    wanted: Collection[str] | None,
    limit: int,
) -> tuple[list[dict[str, Any]], str | None]:
    order = _SORTS.get(fields.get("sort", ""), Order.NAME)
    after = _decode_cursor(fields["cursor"]) if "cursor" in fields else None
    bases = {base.fingerprint: base for base in hub.registry.bases()}
    is_full = any(is_true(fields.get(name)) for name in ("full", "cardData", "config")) or bool(
        _DEEP & set(wanted or ())
    )
    limit = min(limit, FULL_PAGE_LIMIT) if is_full else limit
    documents: list[dict[str, Any]] = []
    scanned = 0
    while True:
        page = hub.registry.repositories.page(
            principal,
            order=order,
            limit=limit,
            after=after,
            tenant=fields.get("author"),
            search=fields.get("search"),
        )
        for repository in page:
            after = repository.position(order)
            scanned += 1
            document = _document(repository.name, repository, bases.get(repository.base_fingerprint or ""), None)
            if tags and not tags <= set(document["tags"]):
                continue
            if is_full:
                document = _complete(hub, repository, document, principal)
            documents.append(_select(document, wanted))
            if len(documents) == limit:
                break
        if len(page) < limit and len(documents) < limit:
            return documents, None
        if len(documents) == limit or scanned >= SCANNED_LIMIT:
            return documents, None if after is None else _encode_cursor(after)


def _complete(hub: Hub, repository: Repository, document: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """A listed repository with what only its files say; one that was deleted meanwhile stays as it was."""
    try:
        return _info(hub, Repo.parse(repository.name), "main", principal, has_sizes=False)
    except NotFoundError:
        return document


def _document(
    repo_id: str, repository: Repository, base: BaseRecord | None, card: Mapping[str, Any] | None
) -> dict[str, Any]:
    card = card or {}
    is_adapter = base is not None
    return {
        "_id": repo_id,
        "id": repo_id,
        "modelId": repo_id,
        "author": repository.tenant,
        "sha": repository.head,
        "private": repository.visibility is Visibility.PRIVATE,
        "gated": False,
        "disabled": False,
        "lastModified": hub_time(repository.updated_at),
        "createdAt": hub_time(repository.created_at),
        "tags": _tags(base, card),
        "downloads": 0,
        "likes": 0,
        "xetEnabled": True,
        "library_name": card.get("library_name") or ("peft" if is_adapter else None),
        "pipeline_tag": card.get("pipeline_tag") or ("text-generation" if is_adapter else None),
        "cardData": dict(card) or None,
        "baseModels": None
        if base is None
        else {"relation": "adapter", "models": [{"_id": base.name, "id": base.name}]},
    }


def _of_mixture(document: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """What is different where the version is a mixture, which PEFT does not load."""
    tags = [tag for tag in document["tags"] if tag not in ("peft", "lora")]
    return {"library_name": card.get("library_name") or "loraplex", "tags": [*tags, "mixture", "lora-switch"]}


def _tags(base: BaseRecord | None, card: Mapping[str, Any]) -> list[str]:
    tags: list[str] = []
    if base is not None:
        tags += ["peft", "safetensors", "lora", f"base_model:{base.name}", f"base_model:adapter:{base.name}"]
    written = card.get("tags")
    tags += [tag for tag in written if isinstance(tag, str)] if isinstance(written, list) else []
    if isinstance(card.get("license"), str):
        tags.append(f"license:{card['license']}")
    return list(dict.fromkeys(tags))


def _siblings(hub: Hub, snapshot: Snapshot, *, has_sizes: bool) -> list[dict[str, Any]]:
    siblings: list[dict[str, Any]] = []
    for file in snapshot.files.values():
        document: dict[str, Any] = {"rfilename": file.path}
        if has_sizes:
            document |= {"size": file.size, "blobId": content_oid(hub, file)}
            document |= {"lfs": lfs_info(file)} if file.is_lfs else {}
        siblings.append(document)
    return siblings


def _version(version: Version) -> dict[str, Any]:
    """What this registry knows beyond the Hub; `card` is where the generated model card is, whole."""
    return {
        "card": f"{CARD_PATH}?{urlencode({'ref': f'{version.adapter}@{version.number}'})}",
        "version": version.number,
        "digest": version.digest,
        "base_fingerprint": version.base_fingerprint,
        "base_verified": version.base_verified,
        "rank": version.rank,
        "experts": list(version.experts),
    }


def _expanded(query: list[tuple[str, str]]) -> frozenset[str] | None:
    """The fields that were asked for by name; None where none was."""
    wanted = frozenset(value for key, value in query if key in ("expand", "expand[]"))
    if unknown := sorted(wanted - _FIELDS - _UNKNOWN_HERE):
        raise HubError(400, f"This registry knows no field {unknown[0][:40]!r} of a model.")
    return wanted or None


def _select(document: dict[str, Any], wanted: Collection[str] | None) -> dict[str, Any]:
    if wanted is None:
        return document
    return {key: document.get(key) for key in ("_id", "id", *sorted(wanted))}


def _encode_cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode("ascii")


def _decode_cursor(text: str) -> Position:
    try:
        return decode(base64.b64decode(text, altchars=b"-_", validate=True), Position)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidValueError("cursor", "it is none that this registry gave out") from error


ROUTES = (
    Route("GET", "/api/models", list_models),
    Route("POST", "/api/validate-yaml", validate_yaml, Access.OPEN),
    Route("GET", "/api/models/{tenant}/{name}", model_info),
    Route("GET", "/api/models/{tenant}/{name}/revision/{revision}", model_info),
)
