"""Who is asking: bearer tokens to principals.

It does: ask the registry about a token (in a thread, remembered for some seconds); decide about requests without one.
It does not: decide what a tenant may read (the registry does, with the principal).

While the registry holds no token, the server is open to this machine only: it listens on loopback, and requests must
be addressed to a loopback name, so that a web page in a browser here cannot use it (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from registry import Registry
from registry.errors import AuthenticationError, StorageError
from registry.principal import Principal, Role
from serving.errors import ForbiddenError, MissingTokenError, RegistryUnavailableError, WrongTokenError
from serving.settings import is_loopback_host
from serving.threads import Threads

R = TypeVar("R")

REMEMBERED_TOKENS = 4096
LONGEST_TOKEN_CHARACTERS = 512
OUTAGE_SECONDS = 3600.0
"""While the registry cannot be read, a token that it has accepted before stays good for so long."""

logger = logging.getLogger(__name__)


class Authenticator:
    """Turns headers into a principal. Mutable memory of tokens (their hashes); used on one event loop."""

    def __init__(
        self,
        registry: Registry,
        *,
        is_loopback: bool,
        remember_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._is_loopback = is_loopback
        self._remember_seconds = remember_seconds
        self._clock = clock
        self._threads = Threads("auth", 2)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._tokens_exist = False
        self._looked_at = -remember_seconds

    def close(self) -> None:
        """Take no further requests."""
        self._threads.close()

    async def principal_of(self, authorization: str | None, *, host: str | None, origin: str | None) -> Principal:
        """The principal of a request with these headers.

        Raises MissingTokenError, WrongTokenError, ForbiddenError, RegistryUnavailableError.
        """
        if await self._needs_tokens():
            return await self._principal_of_token(authorization)
        if not self._is_loopback:
            raise MissingTokenError
        _refuse_foreign_address(host, origin)
        return Principal.operator()

    async def _needs_tokens(self) -> bool:
        """Once a token was seen, tokens are needed until this server ends, even if all are revoked."""
        if not self._tokens_exist and self._clock() - self._looked_at >= self._remember_seconds:
            self._tokens_exist = await self._ask(self._registry.has_tokens)
            self._looked_at = self._clock()
        return self._tokens_exist

    async def _principal_of_token(self, authorization: str | None) -> Principal:
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise MissingTokenError
        if len(secret) > LONGEST_TOKEN_CHARACTERS:
            raise WrongTokenError
        key = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(key)
        if known is not None and self._clock() < known[1] + self._remember_seconds:
            return known[0]
        try:
            principal = await self._ask(lambda: self._registry.authenticate(secret))
        except AuthenticationError:
            self._known.pop(key, None)
            raise WrongTokenError from None
        except RegistryUnavailableError:
            if known is not None and self._clock() < known[1] + OUTAGE_SECONDS:
                return known[0]
            raise
        self._known[key] = (principal, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_TOKENS:
            self._known.popitem(last=False)
        return principal

    async def _ask(self, call: Callable[[], R]) -> R:
        try:
            return await self._threads.run(call)
        except StorageError as error:
            logger.error("registry failed while authenticating: %s", error)
            raise RegistryUnavailableError from error


def require_admin(principal: Principal) -> None:
    """Raises ForbiddenError unless the principal is an admin or the operator."""
    if not principal.role.includes(Role.ADMIN):
        raise ForbiddenError("This needs a token with the role admin.")


def _refuse_foreign_address(host: str | None, origin: str | None) -> None:
    """Without tokens, only what is addressed to this machine, and by nothing but this machine, is answered."""
    for address in (host, None if origin is None else origin.partition("://")[2]):
        if address is not None and not is_loopback_host(_without_port(address)):
            raise ForbiddenError(
                "This server has no tokens and answers only requests to this machine (127.0.0.1 or localhost)."
            )


def _without_port(address: str) -> str:
    name, colon, port = address.rpartition(":")
    return name if colon and port.isdigit() and (name.endswith("]") or ":" not in name) else address
