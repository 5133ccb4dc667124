"""Who the client is, and what it may do with a repository."""

from __future__ import annotations

from registry.hub.context import Hub
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response
from registry.hub.routing import Route
from registry.principal import Principal, Role

OPERATOR_NAME = "operator"


async def whoami(_: Hub, request: Request) -> Response:
    """GET /api/whoami-v2: a token acts for its tenant, so the tenant is the user."""
    principal = request.principal
    name = principal.tenant or OPERATOR_NAME
    return json_response(
        {
            "type": "user",
            "id": name,
            "name": name,
            "fullname": name,
            "email": None,
            "emailVerified": False,
            "canPay": False,
            "isPro": False,
            "orgs": [],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": principal.actor, "role": _token_role(principal)},
            },
        }
    )


async def check_read(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/auth-check."""
    repo = Repo.of(request.values)
    await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    return json_response({})


async def check_write(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/auth-check/write."""
    repo = Repo.of(request.values)
    await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    repo.require_whole("write to")
    request.principal.require(Role.PUBLISHER, repo.name, action="write to")
    return json_response({})


def _token_role(principal: Principal) -> str:
    return "write" if principal.role.includes(Role.PUBLISHER) else "read"


ROUTES = (
    Route("GET", "/api/whoami-v2", whoami),
    Route("GET", "/api/models/{tenant}/{name}/auth-check", check_read),
    Route("GET", "/api/models/{tenant}/{name}/auth-check/write", check_write),
)
