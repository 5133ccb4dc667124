"""Xet uploads over HTTP: a write token for a session of its own, its xorbs, and the shards that make files of them.

Downloads never go through here: no answer of this registry names a Xet hash, so that clients read files as they are.
Every session has an address of its own. A client remembers what it has sent by that address, so it never counts on
chunks that were sent in another session and are gone. The address has three spellings, by the age of hf_xet:
`/v1/xorbs`, `/xorbs` (1.2) and `/xorb` (1.1), and likewise for shards.
"""

from __future__ import annotations

import re
import time

from registry.errors import AuthenticationError, InvalidValueError
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import Response, json_response
from registry.hub.routing import Access, Route
from registry.hub.xet_format import SHARD_BYTES_LIMIT, XORB_BYTES_LIMIT
from registry.hub.xet_grant import GRANT_SECONDS, XetGrant
from registry.hub.xet_session import Part, XetSession
from registry.principal import Role

_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_XORB_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


async def write_token(hub: Hub, request: Request) -> Response:
    """GET /api/models/{id}/xet-write-token/{revision}: where to send chunks, and the token for it."""
    repo = Repo.of(request.values)
    await hub.run(hub.registry.repositories.find, repo.name, request.principal)
    repo.require_whole("upload to")
    request.principal.require(Role.PUBLISHER, repo.name, action="upload to")
    expires_at = int(time.time()) + GRANT_SECONDS
    grant = XetGrant(repo.name.tenant, repo.name.name, request.principal.token_id, expires_at)
    token = (await hub.run(hub.xet_grants)).sign(grant)
    url = f"{hub.gathering_url(request.base_url)}/cas/{await hub.run(hub.xet_sessions.begin)}"
    headers = {"x-xet-access-token": token, "x-xet-token-expiration": str(expires_at), "x-xet-cas-url": url}
    return json_response({"accessToken": token, "exp": expires_at, "casUrl": url}, headers=headers)


async def receive_xorb(hub: Hub, request: Request) -> Response:
    """POST .../xorbs/default/{hash}: packed chunks."""
    session = await _session(hub, request)
    xorb_hash = request.values["hash"]
    if not _XORB_HASH.fullmatch(xorb_hash):
        raise InvalidValueError("hash", "it is not 64 hexadecimal digits")
    announced = _announced(request, XORB_BYTES_LIMIT)
    part = await hub.run(session.new_part, announced_bytes=announced)
    try:
        await _fill(hub, request, part, limit_bytes=announced)
        is_new = await hub.run(session.keep_xorb, part, xorb_hash)
    finally:
        part.discard()
    return json_response({"was_inserted": is_new})


async def receive_shard(hub: Hub, request: Request) -> Response:
    """POST .../shards: the files that the xorbs make; when this is answered, they are stored and verified."""
    session = await _session(hub, request)
    announced = _announced(request, SHARD_BYTES_LIMIT)
    part = await hub.run(session.new_part, announced_bytes=announced)
    try:
        await _fill(hub, request, part, limit_bytes=announced)
        await hub.run(session.register_shard, part)
    finally:
        part.discard()
    return json_response({"result": 1})


async def not_offered(hub: Hub, request: Request) -> Response:
    """What clients ask for and go on without: known chunks, grants to store elsewhere, newer shards."""
    await _session(hub, request)
    raise HubError(404, "This registry does not offer it.")


async def _session(hub: Hub, request: Request) -> XetSession:
    """The session that address and token open. Raises AuthenticationError."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _SESSION.fullmatch(request.values["session"]):
        raise AuthenticationError
    grant = (await hub.run(hub.xet_grants)).check(token.strip())
    return hub.xet_sessions.find(request.values["session"], grant)


def _announced(request: Request, limit_bytes: int) -> int:
    announced = request.content_length()
    return limit_bytes if announced is None else min(announced, limit_bytes)


async def _fill(hub: Hub, request: Request, part: Part, *, limit_bytes: int) -> None:
    await hub.threads.write_all(request.pieces(limit_bytes=limit_bytes), part.write)


ROUTES = (
    Route("GET", "/api/models/{tenant}/{name}/xet-write-token/{revision}", write_token),
    *(
        Route("POST", f"/cas/{{session}}/{path}", receive_xorb, access=Access.SIGNED)
        for path in ("v1/xorbs/default/{hash}", "xorbs/default/{hash}", "xorb/default/{hash}")
    ),
    *(
        Route("POST", f"/cas/{{session}}/{path}", receive_shard, access=Access.SIGNED)
        for path in ("v1/shards", "shards", "shard/default/{hash}")
    ),
    *(
        Route(method, f"/cas/{{session}}/{path}", not_offered, access=Access.SIGNED)
        for method, path in (
            ("GET", "v1/chunks/default/{hash}"),
            ("GET", "chunks/default/{hash}"),
            ("GET", "chunk/default/{hash}"),
            ("POST", "v1/xorb-grants/default/{hash}"),
            ("POST", "v2/shards"),
        )
    ),
)
