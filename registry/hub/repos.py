"""Making repositories, and their settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from registry.errors import InvalidValueError
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response
from registry.hub.routing import Route
from registry.names import AdapterName
from registry.version import Visibility

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class NewRepo(msgspec.Struct, frozen=True):
    """Body of create. Fields of other kinds of repositories are not ours and are refused by `type`."""

    name: _Name
    organization: _Name | None = None
    type: str | None = None
    visibility: Literal["private", "public"] | None = None
    private: bool | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of settings."""

    visibility: Literal["private", "public"] | None = None
    private: bool | None = None
    gated: Literal["auto", "manual", False] | None = None


async def create(hub: Hub, request: Request) -> Response:
    """POST /api/repos/create. A repository that is there already is a 409 with its address."""
    body = await request.json(NewRepo)
    if body.type not in (None, "model"):
        raise HubError(400, f"This registry keeps models only, not repositories of type {body.type[:40]!r}.")
    tenant = body.organization or request.principal.tenant
    if tenant is None:
        raise HubError(400, "The operator has no namespace: name the tenant, as in TENANT/NAME.")
    name = AdapterName.parse(f"{tenant}/{body.name}")
    visibility = _visibility(body.visibility, body.private)
    created, is_new = await hub.run(
        hub.registry.repositories.create, name, visibility=visibility, principal=request.principal
    )
    document = {"url": f"{request.base_url}/{created.name}", "name": created.name, "id": created.name}
    if is_new:
        return json_response(document)
    message = f"You already created this model repo: {created.name}"
    return json_response(document | {"error": message}, status=409, headers={"x-error-message": message})


async def change_settings(hub: Hub, request: Request) -> Response:
    """PUT /api/models/{id}/settings: the visibility."""
    repo = Repo.of(request.values)
    body = await request.json(Settings)
    await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    repo.require_whole("change the settings of")
    if body.gated:
        raise HubError(400, "This registry has no gated repositories: who may read is decided by tenants.")
    visibility = _visibility(body.visibility, body.private)
    if visibility is not None:
        await hub.run(hub.registry.repositories.set_visibility, repo.name, visibility, request.principal)
    found = await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    return json_response({"visibility": found.visibility.value, "private": found.visibility is Visibility.PRIVATE})


def _visibility(visibility: str | None, is_private: bool | None) -> Visibility | None:
    said = None if is_private is None else (Visibility.PRIVATE if is_private else Visibility.PUBLIC)
    if visibility is None:
        return said
    if said is not None and said.value != visibility:
        raise InvalidValueError("visibility", "`visibility` and `private` contradict each other")
    return Visibility(visibility)


ROUTES = (
    Route("POST", "/api/repos/create", create),
    Route("PUT", "/api/models/{tenant}/{name}/settings", change_settings),
)
