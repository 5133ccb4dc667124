"""GET /v1/models: what this client may name as `model`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from litestar import Request, get
from litestar.params import FromPath

from registry.errors import AuthenticationError, StorageError
from registry.version import AdapterSummary
from serving.api.dialect import Document
from serving.api.service import Service, service_of
from serving.errors import ModelNotFoundError, RegistryUnavailableError, WrongTokenError
from serving.served_base import BASE_ALIAS, ServedBase
from serving.target import Target

OWNER_OF_BASE = "loraplex"
LONGEST_MODEL = 256


@get("/v1/models")
async def list_models(request: Request[Any, Any, Any]) -> Document:
    """The base, and every adapter for it that the client may read: by its name and by each alias."""
    service = service_of(request)
    base = service.running_base()
    try:
        summaries = await service.registry_threads.run(service.registry.list_adapters, request.auth)
    except StorageError as error:
        raise RegistryUnavailableError from error
    except AuthenticationError:  # a registry over HTTP that has been told meanwhile that the token is over
        raise WrongTokenError from None
    data = [_base_entry(service, base, name) for name in dict.fromkeys((base.name, BASE_ALIAS))]
    for summary in summaries:
        if summary.base_fingerprint == base.fingerprint:
            data.extend(_adapter_entries(summary, base))
    return {"object": "list", "data": data}


@get("/v1/models/{model:path}")
async def show_model(request: Request[Any, Any, Any], model: FromPath[str]) -> Document:
    """One model by any of its names; the same 404 for a missing and for a foreign one."""
    service = service_of(request)
    base = service.running_base()
    name = model.removeprefix("/")
    if len(name) > LONGEST_MODEL:
        raise ModelNotFoundError(name[:LONGEST_MODEL])
    if base.is_named(name):
        return _base_entry(service, base, name)
    stable, *canary = await service.loader.sides(name, request.auth, base)
    return _entry_of(name, stable) | ({"canary": canary[0].name} if canary else {})


def _base_entry(service: Service, base: ServedBase, name: str) -> Document:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": OWNER_OF_BASE,
        "root": base.name,
        "parent": None,
        "max_model_len": base.context_tokens,
    }


def _adapter_entries(summary: AdapterSummary, base: ServedBase) -> Iterator[Document]:
    """The bare name (the newest version) and the aliases; `root` is the version behind each."""
    numbers = {summary.adapter: summary.newest_number}
    numbers |= {f"{summary.adapter}@{alias}": number for alias, number in summary.aliases.items()}
    for name, number in numbers.items():
        entry = _adapter_entry(name, f"{summary.adapter}@{number}", summary.tenant, base, summary.created_at)
        yield entry | {"base_verified": number not in summary.unverified}


def _entry_of(name: str, target: Target) -> Document:
    assert target.version is not None, "the base is answered before"
    version = target.version
    entry = _adapter_entry(name, target.name, version.tenant, target.base, version.created_at)
    entry |= {"digest": version.digest, "base_verified": version.base_verified}
    return entry | ({"experts": list(version.experts)} if version.experts else {})


def _adapter_entry(name: str, root: str, tenant: str, base: ServedBase, created_at: datetime) -> Document:
    return {
        "id": name,
        "object": "model",
        "created": int(created_at.timestamp()),
        "owned_by": tenant,
        "root": root,
        "parent": base.name,
        "max_model_len": base.context_tokens,
    }
