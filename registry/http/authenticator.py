"""Who is asking: bearer tokens to principals, for every face that the registry and the server have.

It does: ask the registry about a token (in a thread, remembered for some seconds by its hash), know the operator's own
secret where the server was given one, and decide about requests without a token.
It does not: decide what a tenant may read or do (the registry does, with the principal).

While the registry holds no token and the server has no operator's secret, the server is open to this machine only: it
listens on loopback, and requests must be addressed to a loopback name, so that a web page in a browser here cannot use
it (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from registry.errors import AuthenticationError, MissingTokenError, PermissionDeniedError, StorageError
from registry.loopback import is_loopback_address
from registry.principal import Principal
from registry.threads import Threads

R = TypeVar("R")

REMEMBERED_TOKENS = 4096
LONGEST_TOKEN_CHARACTERS = 512
OUTAGE_SECONDS = 3600.0
"""While the registry cannot be read, a token that it has accepted before stays good for so long."""
THREADS = 2

logger = logging.getLogger(__name__)


class TokenRegistry(Protocol):
    """What is asked of a registry about tokens."""

    def has_tokens(self) -> bool:
        """Whether a token was ever made."""
        ...

    def authenticate(self, secret: str) -> Principal:
        """The principal whose secret this is. Raises AuthenticationError."""
        ...


class Authenticator:
    """Turns headers into a principal. Mutable memory of tokens (their hashes); used on one event loop."""

    def __init__(
        self,
        registry: TokenRegistry,
        *,
        is_loopback: bool,
        remember_seconds: float,
        operator_secret: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._is_loopback = is_loopback
        self._remember_seconds = remember_seconds
        self._operator_key = None if operator_secret is None else _key_of(operator_secret)
        self._clock = clock
        self._threads = Threads("auth", THREADS)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._tokens_exist = operator_secret is not None
        self._looked_at = -remember_seconds

    def close(self) -> None:
        """Take no further requests."""
        self._threads.close()

    async def principal_of_scope(self, scope: Any) -> Principal:
        """The principal of an ASGI request. Raises as `principal_of`."""
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}

        def text(name: bytes) -> str | None:
            return headers[name].decode("latin-1") if name in headers else None

        return await self.principal_of(text(b"authorization"), host=text(b"host"), origin=text(b"origin"))

    async def principal_of(self, authorization: str | None, *, host: str | None, origin: str | None) -> Principal:
        """The principal of a request with these headers.

        Raises MissingTokenError, AuthenticationError, PermissionDeniedError (no tokens, and a foreign address),
        StorageError (the registry cannot be asked).
        """
        if await self._needs_tokens():
            return await self._principal_of_token(authorization)
        if not self._is_loopback:
            raise MissingTokenError
        _refuse_foreign_address(host, origin)
        return Principal.operator()

    @property
    def is_open(self) -> bool:
        """Whether requests need no token, as far as is known."""
        return self._is_loopback and not self._tokens_exist

    def forget(self) -> None:
        """Ask the registry again about every token: one was revoked, or changed, through this process."""
        self._known.clear()
        self._looked_at = -self._remember_seconds

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
            raise AuthenticationError
        key = _key_of(secret)
        if self._operator_key is not None and hmac.compare_digest(key, self._operator_key):
            return Principal.operator()
        known = self._known.get(key)
        if known is not None and self._clock() < known[1] + self._remember_seconds:
            return known[0]
        try:
            principal = await self._ask(lambda: self._registry.authenticate(secret))
        except AuthenticationError:
            self._known.pop(key, None)
            raise
        except StorageError:
            if known is not None and self._clock() < known[1] + OUTAGE_SECONDS:
                return known[0]
            raise
        self._remember(key, principal)
        return principal

    def _remember(self, key: bytes, principal: Principal) -> None:
        self._known[key] = (principal, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_TOKENS:
            self._known.popitem(last=False)

    async def _ask(self, call: Callable[[], R]) -> R:
        try:
            return await self._threads.run(call)
        except StorageError as error:
            logger.error("registry failed while authenticating: %s", error)
            raise


def _key_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _refuse_foreign_address(host: str | None, origin: str | None) -> None:
    """Without tokens, only what is addressed to this machine, and by nothing but this machine, is answered."""
    for address in (host, None if origin is None else origin.partition("://")[2]):
        if address is not None and not is_loopback_address(address):
            raise PermissionDeniedError(
                "use",
                "this server",
                "it has no tokens and answers only requests to this machine (127.0.0.1 or localhost)",
            )
