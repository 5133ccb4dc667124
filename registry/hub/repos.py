"""Making, moving and deleting repositories, and their settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from registry.errors import ConflictError, InvalidValueError
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


class NamedRepo(msgspec.Struct, frozen=True):
    """Body of delete."""

    name: _Name
    organization: _Name | None = None
    type: str | None = None


class Move(msgspec.Struct, frozen=True, rename={"from_repo": "fromRepo", "to_repo": "toRepo"}):
    """Body of move."""

    from_repo: _Name
    to_repo: _Name
    type: str | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of settings."""

    visibility: Literal["private", "public"] | None = None
    private: bool | None = None
    gated: Literal["auto", "manual", False] | None = None


async def create(hub: Hub, request: Request) -> Response:
    """POST /api/repos/create. A repository that is there already is a 409 with its address."""
    body = await request.json(NewRepo)
    name = AdapterName.parse(_full_name(request, body))
    visibility = _visibility(body.visibility, body.private)
    try:
        created, is_new = await hub.run(
            hub.registry.repositories.create, name, visibility=visibility, principal=request.principal
        )
    except ConflictError as error:  # not a 409: to a client, that means "it is there already, at this address"
        raise HubError(403, error.message) from error
    document = {"url": f"{request.base_url}/{created.name}", "name": created.name, "id": created.name}
    if is_new:
        return json_response(document)
    message = f"You already created this model repo: {created.name}"
    return json_response(document | {"error": message}, status=409, headers={"x-error-message": message})


async def delete(hub: Hub, request: Request) -> Response:
    """DELETE /api/repos/delete: the adapter with all its versions; its name rests for a year."""
    body = await request.json(NamedRepo)
    repo = Repo.parse(_full_name(request, body))
    repo.require_whole("delete")
    await hub.run(hub.registry.delete_adapter, str(repo.name), request.principal)
    return json_response({})


async def move(hub: Hub, request: Request) -> Response:
    """POST /api/repos/move: another name in the same tenant."""
    body = await request.json(Move)
    old = Repo.parse(body.from_repo)
    await hub.run(hub.registry.repositories.find, old.name, request.principal)
    old.require_whole("rename")
    new = AdapterName.parse(body.to_repo)
    await hub.run(hub.registry.move_adapter, str(old.name), str(new), request.principal)
    return json_response({"url": f"{request.base_url}/{new}"})


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


def _full_name(request: Request, body: NewRepo | NamedRepo) -> str:
    if body.type not in (None, "model"):
        raise HubError(400, f"This registry keeps models only, not repositories of type {body.type[:40]!r}.")
    tenant = body.organization or request.principal.tenant
    if tenant is None:
        raise HubError(400, "The operator has no namespace: name the tenant, as in TENANT/NAME.")
    return f"{tenant}/{body.name}"


def _visibility(visibility: str | None, is_private: bool | None) -> Visibility | None:
    said = None if is_private is None else (Visibility.PRIVATE if is_private else Visibility.PUBLIC)
    if visibility is None:
        return said
    if said is not None and said.value != visibility:
        raise InvalidValueError("visibility", "`visibility` and `private` contradict each other")
    return Visibility(visibility)


ROUTES = (
    Route("POST", "/api/repos/create", create),
    Route("DELETE", "/api/repos/delete", delete),
    Route("POST", "/api/repos/move", move),
    Route("PUT", "/api/models/{tenant}/{name}/settings", change_settings),
)
