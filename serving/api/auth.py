"""Who is asking, in the words of the server: the registry's own authenticator, with the server's errors."""

from __future__ import annotations

import time
from collections.abc import Callable

from registry import Registry
from registry.errors import AuthenticationError, MissingTokenError, PermissionDeniedError, StorageError
from registry.http.authenticator import Authenticator as RegistryAuthenticator
from registry.principal import Principal, Role
from serving import errors


class Authenticator:
    """Turns headers into a principal, remembered for some seconds. Used on one event loop."""

    def __init__(
        self,
        registry: Registry,
        *,
        is_loopback: bool,
        remember_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.of_registry = RegistryAuthenticator(
            registry, is_loopback=is_loopback, remember_seconds=remember_seconds, clock=clock
        )

    def close(self) -> None:
        """Take no further requests."""
        self.of_registry.close()

    async def principal_of(self, authorization: str | None, *, host: str | None, origin: str | None) -> Principal:
        """The principal of a request with these headers.

        Raises MissingTokenError, WrongTokenError, ForbiddenError, RegistryUnavailableError.
        """
        try:
            return await self.of_registry.principal_of(authorization, host=host, origin=origin)
        except MissingTokenError:
            raise errors.MissingTokenError from None
        except AuthenticationError:
            raise errors.WrongTokenError from None
        except PermissionDeniedError as error:
            raise errors.ForbiddenError(error.message) from None
        except StorageError as error:
            raise errors.RegistryUnavailableError from error


def require_admin(principal: Principal) -> None:
    """Raises ForbiddenError unless the principal is an admin or the operator."""
    if not principal.role.includes(Role.ADMIN):
        raise errors.ForbiddenError("This needs a token with the role admin.")
