"""The Hub face as one small ASGI application, beside the native REST API.

    app = create_hub_app(reg, authenticate=authenticator.principal_of_scope, settings=HubSettings())
    app.takes(raw_path)     whether a path belongs here; whoever composes the faces asks
    app.shows(scope)        whether a request is a browser's, for a page that is shown here
    await app(scope, receive, send)

Browsers that ask for HTML at a repository's address get pages (`pages.py`), which have a table of routes of their own.

It is an application of its own because revisions and file names carry `%2F`: routing works on the raw path.

A module with routes has `ROUTES`, a tuple of `Route(method, pattern, handler)`, and stands in `_MODULES` below. A
handler is `async def handler(hub: Hub, request: Request) -> Response`. It raises errors of the registry, which become
answers in `errors.py`, and runs what blocks in `await hub.run(function, ...)`. `request.values` holds what the pattern
captured, decoded; `request.principal` who asks; `request.base_url` the address that the client used;
`request.pieces(limit_bytes=)`, `request.body()` and `request.json(Struct)` the body, bounded. Routes ask for a
principal unless they say `access=Access.SIGNED`: then the handler itself checks the signature in the address, or a
bearer token that it gave out; or `Access.OPEN`, for what clients ask without a token and is about nothing in here.
`Access.BROWSER` lets a browser send its token as a password.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from registry.errors import AuthenticationError, MissingTokenError, NotFoundError, RegistryError
from registry.hub import account, cas, commit, download, history, info, lfs, overview, pages, preupload, repos, tree
from registry.hub.context import Hub, HubSettings
from registry.hub.errors import REPO_NOT_FOUND, ClientGoneError, Failure, failure_of
from registry.hub.repo import Repo
from registry.hub.request import Receive, Request, Scope, raw_path_of
from registry.hub.response import Response, header_text, json_response
from registry.hub.routing import Access, Match, Route, RouteTable
from registry.registry import Registry

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Authenticate = Callable[[Scope], Awaitable[Any]]

_MODULES = (account, repos, info, tree, history, preupload, lfs, cas, commit, download)
_OWN_PREFIXES = (b"/api/", b"/cas/", b"/oauth/")
_REPO_PATH = re.compile(rb"/[^/]+/(?:[^/]+/resolve/|[^/]+\.git/)")
_WITHOUT_TENANT = re.compile(rb"/api/models/[^/]+/?$|/[^/]+/resolve/[^/]+/.")
_OTHER_KINDS = re.compile(rb"/(?:api/)?(?:datasets|spaces|kernels)(?:/|$)")
NOT_OFFERED = 501
"""What this registry does not have by design: an answer like any other, and no fault of the server."""

_HOST = re.compile(r"[A-Za-z0-9.\-_]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")

logger = logging.getLogger(__name__)


def create_hub_app(reg: Registry, *, authenticate: Authenticate, settings: HubSettings | None = None) -> HubApp:
    """The application. `authenticate` makes a Principal of an ASGI scope, and raises errors of the registry."""
    return HubApp(Hub(reg, settings or HubSettings()), authenticate)


class HubApp:
    """Routes, authenticates, answers. Holds no state of a request."""

    def __init__(self, hub: Hub, authenticate: Authenticate) -> None:
        self._hub = hub
        self._authenticate = authenticate
        self.table = RouteTable(route for module in _MODULES for route in module.ROUTES)
        self.pages = RouteTable((*overview.ROUTES, *pages.ROUTES))

    @staticmethod
    def takes(raw_path: bytes) -> bool:
        """Whether this path belongs to the Hub face."""
        return (
            raw_path.startswith(_OWN_PREFIXES)
            or _OTHER_KINDS.match(raw_path) is not None
            or _REPO_PATH.match(raw_path) is not None
            or _WITHOUT_TENANT.match(raw_path) is not None
        )

    @staticmethod
    def shows(scope: Scope) -> bool:
        """Whether this request is answered by a page."""
        return pages.is_asked(scope)

    def close(self) -> None:
        """End the threads."""
        self._hub.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        assert scope["type"] == "http", scope["type"]
        request_id = secrets.token_hex(8)
        try:
            response = await self._respond(scope, receive, request_id)
        except ClientGoneError:
            return
        await _send(response, receive, send, request_id, is_head=scope["method"] == "HEAD")

    async def _respond(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        raw_path = raw_path_of(scope)
        is_page = pages.is_asked(scope)
        error_response = pages.failure_page if is_page else _error_response
        is_repo = True
        try:
            found = self._find(scope["method"], raw_path, is_page=is_page)
            if not isinstance(found, Match):
                principal = await self._authenticate(scope)
                assert principal is not None
                return error_response(_no_route(raw_path, found))
            is_repo = "{tenant}" in found.route.pattern
            principal = await self._principal(scope, found.route.access)
            request = Request(
                scope,
                receive,
                values=found.values,
                principal=principal,
                base_url=self._base_url(scope),
                request_id=request_id,
            )
            return await self._handle(found.route, request)
        except ClientGoneError:
            raise
        except RegistryError as error:
            failure = failure_of(error)
            if failure.status >= 500 and failure.status != NOT_OFFERED:
                logger.error("%s %s failed (request %s): %s", scope["method"], scope["path"], request_id, error)
            return error_response(_hide(failure, error, is_repo=is_repo))
        except Exception:
            logger.exception("%s %s failed (request %s)", scope["method"], scope["path"], request_id)
            return error_response(Failure(500, "Internal error."))

    def _find(self, method: str, raw_path: bytes, *, is_page: bool) -> Match | frozenset[str]:
        return self.pages.find(method, raw_path.rstrip(b"/") or b"/") if is_page else self.table.find(method, raw_path)

    async def _principal(self, scope: Scope, access: Access) -> Any:
        """Who asks, where the route wants to know."""
        if access in (Access.SIGNED, Access.OPEN):
            return None
        return await self._authenticate(pages.with_bearer(scope) if access is Access.BROWSER else scope)

    async def _handle(self, route: Route, request: Request) -> Response:
        """Run the handler; a repository that was renamed sends readers to its new name."""
        try:
            answer: Response = await route.handler(self._hub, request)
            return answer
        except NotFoundError as error:
            if error.kind != "adapter" or request.method not in ("GET", "HEAD") or "{tenant}" not in route.pattern:
                raise
            old = str(Repo.of(request.values).name)
            new = await self._hub.run(self._hub.registry.moved_to, old, request.principal)
            if new is None:
                raise
            path = request.raw_path.replace(old.encode(), new.encode(), 1).decode("latin-1")
            query = request.raw_query.decode("latin-1")
            return Response(307, {"location": f"{path}?{query}" if query else path})

    def _base_url(self, scope: Scope) -> str:
        """The address by which the client reached us: what it is told to call next must have the same host."""
        if self._hub.settings.public_url is not None:
            return self._hub.settings.public_url.rstrip("/")
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"), "")
        if not _HOST.fullmatch(host):
            address, port = scope.get("server") or ("localhost", 80)
            host = f"{address}:{port}"
        return f"{scope.get('scheme', 'http')}://{host}"


def _hide(failure: Failure, error: RegistryError, *, is_repo: bool) -> Failure:
    """Without a valid token, every repository looks alike: as one that is not there."""
    if is_repo and isinstance(error, AuthenticationError):
        message = error.message if isinstance(error, MissingTokenError) else failure.message
        return Failure(401, message, "RepoNotFound", failure.headers)
    return failure


def _no_route(raw_path: bytes, allowed: frozenset[str]) -> Failure:
    if _OTHER_KINDS.match(raw_path) or _WITHOUT_TENANT.match(raw_path):  # no repository here has such a name
        return Failure(404, REPO_NOT_FOUND, "RepoNotFound")
    if allowed:
        return Failure(405, "This address does not take this method.", headers={"allow": ", ".join(sorted(allowed))})
    return Failure(404, "There is nothing at this address: this registry does not offer it.")


def _error_response(failure: Failure) -> Response:
    headers = {"x-error-message": header_text(failure.message)} | failure.headers
    if failure.code is not None:
        headers["x-error-code"] = failure.code
    return json_response({"error": failure.message}, status=failure.status, headers=headers)


async def _send(response: Response, receive: Receive, send: Send, request_id: str, *, is_head: bool) -> None:
    headers = dict(response.headers) | {"x-request-id": request_id}
    if response.pieces is None:
        headers.setdefault("content-length", str(len(response.body)))
    encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    if response.pieces is not None:
        await _send_pieces(response.pieces, receive, send)
    else:
        await send({"type": "http.response.body", "body": b"" if is_head else response.body})


async def _send_pieces(pieces: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Send until the end, or until the client is gone: nothing is read for nobody."""
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


__all__ = ["Authenticate", "HubApp", "Route", "create_hub_app"]
