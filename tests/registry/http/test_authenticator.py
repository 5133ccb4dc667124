"""The authenticator that both faces and the server share: tokens, memory, outages, and the open mode on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import registry
from registry.errors import AuthenticationError, MissingTokenError, PermissionDeniedError, StorageError
from registry.http.authenticator import OUTAGE_SECONDS, REMEMBERED_TOKENS, Authenticator
from registry.loopback import is_loopback_address
from registry.principal import Principal, Role

OPERATOR_SECRET = "planted-operator-secret-" + "0" * 16


class Tokens:
    """A registry's tokens, which counts how often it is asked and can be switched off."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}
        self.asked = 0
        self.is_down = False
        self.had_tokens = False

    def add(self, secret: str, role: Role = Role.READER) -> None:
        self.principals[secret] = Principal(tenant="acme", role=role, token_id=f"tok_{secret}")
        self.had_tokens = True

    def has_tokens(self) -> bool:
        self._refuse_when_down()
        return self.had_tokens

    def authenticate(self, secret: str) -> Principal:
        self.asked += 1
        self._refuse_when_down()
        if secret not in self.principals:
            raise AuthenticationError
        return self.principals[secret]

    def _refuse_when_down(self) -> None:
        if self.is_down:
            raise StorageError("/secret/path is gone")


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(tokens: Tokens, clock: Clock) -> Iterator[Authenticator]:
    made = Authenticator(tokens, is_loopback=True, remember_seconds=5.0, clock=clock)
    yield made
    made.close()


async def ask(guard: Authenticator, authorization: str | None, host: str | None = "127.0.0.1:80") -> Principal:
    return await guard.principal_of(authorization, host=host, origin=None)


async def test_a_token_is_asked_about_once_in_a_while(guard: Authenticator, tokens: Tokens, clock: Clock) -> None:
    tokens.add("one")
    for _ in range(3):
        assert (await ask(guard, "Bearer one")).token_id == "tok_one"
    assert tokens.asked == 1
    clock.now += 5.1
    await ask(guard, "bearer   one ")
    assert tokens.asked == 2
    del tokens.principals["one"]
    assert (await ask(guard, "Bearer one")).token_id == "tok_one", "still remembered"
    guard.forget()
    with pytest.raises(AuthenticationError):
        await ask(guard, "Bearer one")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic b25l", "one"])
async def test_no_token(guard: Authenticator, tokens: Tokens, header: str | None) -> None:
    tokens.add("one")
    with pytest.raises(MissingTokenError):
        await ask(guard, header)


async def test_a_wrong_token_is_refused_and_not_remembered(guard: Authenticator, tokens: Tokens) -> None:
    tokens.add("one")
    for secret in ("two", "x" * 513, "\udce4"):
        with pytest.raises(AuthenticationError) as caught:
            await ask(guard, f"Bearer {secret}")
        assert not isinstance(caught.value, MissingTokenError)
    tokens.add("two")
    assert (await ask(guard, "Bearer two")).token_id == "tok_two"


async def test_an_outage_is_bridged_for_tokens_that_were_good(
    guard: Authenticator, tokens: Tokens, clock: Clock
) -> None:
    tokens.add("one")
    await ask(guard, "Bearer one")
    tokens.is_down = True
    clock.now += OUTAGE_SECONDS - 1
    assert (await ask(guard, "Bearer one")).token_id == "tok_one"
    with pytest.raises(StorageError):
        await ask(guard, "Bearer two")
    clock.now += 2
    with pytest.raises(StorageError):
        await ask(guard, "Bearer one")


async def test_the_memory_is_bounded(guard: Authenticator, tokens: Tokens) -> None:
    for number in range(REMEMBERED_TOKENS + 10):
        tokens.add(str(number))
    for number in range(REMEMBERED_TOKENS + 10):
        await ask(guard, f"Bearer {number}")
    assert len(guard._known) == REMEMBERED_TOKENS
    assert b"one" not in b"".join(guard._known), "hashes only"


async def test_without_tokens_this_machine_is_the_operator(guard: Authenticator, tokens: Tokens, clock: Clock) -> None:
    for host in ("127.0.0.1:8000", "localhost", "[::1]:80", None):
        assert (await guard.principal_of(None, host=host, origin="http://localhost:3000")).is_operator
    for host, origin in (("evil.example", None), ("127.0.0.1", "https://evil.example"), ("127.0.0.1", "null")):
        with pytest.raises(PermissionDeniedError, match="only requests to this machine"):
            await guard.principal_of(None, host=host, origin=origin)
    tokens.add("one")
    clock.now += 5.1
    with pytest.raises(MissingTokenError):
        await ask(guard, None)
    tokens.had_tokens = False
    clock.now += 60
    with pytest.raises(MissingTokenError):
        await ask(guard, None)


async def test_beyond_this_machine_nobody_is_the_operator_without_a_secret(tokens: Tokens, clock: Clock) -> None:
    guard = Authenticator(tokens, is_loopback=False, remember_seconds=5.0, clock=clock)
    with pytest.raises(MissingTokenError):
        await ask(guard, None)
    guard.close()


async def test_the_operators_secret(tokens: Tokens) -> None:
    guard = Authenticator(tokens, is_loopback=True, remember_seconds=5.0, operator_secret=OPERATOR_SECRET)
    assert (await ask(guard, f"Bearer {OPERATOR_SECRET}")).is_operator
    with pytest.raises(MissingTokenError):
        await ask(guard, None)
    with pytest.raises(AuthenticationError):
        await ask(guard, f"Bearer {OPERATOR_SECRET}x")
    assert OPERATOR_SECRET not in repr(vars(guard))
    guard.close()


async def test_a_scope_is_read(guard: Authenticator, tokens: Tokens) -> None:
    tokens.add("one")
    scope = {"headers": [(b"host", b"a.example"), (b"Authorization", b"Bearer one")]}
    assert (await guard.principal_of_scope(scope)).token_id == "tok_one"
    with pytest.raises(MissingTokenError):
        await guard.principal_of_scope({"headers": []})


def test_loopback_addresses() -> None:
    for address in ("127.0.0.1", "127.0.0.1:80", "localhost:1", "::1", "[::1]", "[::1]:80", "a.localhost:9"):
        assert is_loopback_address(address)
    for address in ("10.0.0.1:80", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "null", "[::2]:80"):
        assert not is_loopback_address(address)


def test_a_principals_secret_is_not_shown() -> None:
    principal = registry.Principal(tenant="acme", role=Role.READER, token_id="tok_1", secret="lpx_planted")
    assert "planted" not in repr(principal)
    assert principal == registry.Principal(tenant="acme", role=Role.READER, token_id="tok_1")
