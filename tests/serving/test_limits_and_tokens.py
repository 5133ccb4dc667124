from __future__ import annotations

from pathlib import Path

import pytest

import registry
from registry.errors import StorageError
from serving.api.auth import Authenticator
from serving.api.limits import Gate, answer_tokens
from serving.errors import (
    ContextExceededError,
    InvalidFieldError,
    MissingTokenError,
    QueueFullError,
    RegistryUnavailableError,
    WrongTokenError,
)
from serving.settings import LimitSettings


def test_the_gate_counts_in_total_and_per_tenant() -> None:
    gate = Gate(LimitSettings(max_waiting=4, max_waiting_per_tenant=2))
    with gate.admit("a", 4, max_running=2):
        gate.check_integrity()
        with pytest.raises(QueueFullError, match="queue of your tenant is full"):
            gate.admit("a", 1, max_running=2).__enter__()
        with gate.admit("b", 2, max_running=2):
            with pytest.raises(QueueFullError, match="The queue is full") as caught:
                gate.admit("c", 1, max_running=2).__enter__()
            assert caught.value.retry_after_seconds == 3
        assert gate.inside == 4
    assert gate.inside == 0
    gate.check_integrity()


def test_the_operator_has_the_whole_queue_and_nobody_more() -> None:
    gate = Gate(LimitSettings(max_waiting=4, max_waiting_per_tenant=2))
    with gate.admit(None, 6, max_running=2), pytest.raises(QueueFullError):
        gate.admit(None, 1, max_running=2).__enter__()
    for tenant, sequences in ((None, 7), ("a", 5)):
        with pytest.raises(InvalidFieldError, match=f"asks for {sequences} answers"):
            gate.admit(tenant, sequences, max_running=2).__enter__()


def test_the_advice_when_to_try_again_follows_the_requests() -> None:
    gate = Gate(LimitSettings(max_waiting=0))
    for _ in range(100):
        gate.learn(20.0)
    with gate.admit("a", 1, max_running=1):
        with pytest.raises(QueueFullError) as caught:
            gate.admit("a", 1, max_running=1).__enter__()
        assert caught.value.retry_after_seconds == 20
    for _ in range(100):
        gate.learn(1e6)
    with gate.admit("a", 1, max_running=1), pytest.raises(QueueFullError) as caught:
        gate.admit("a", 1, max_running=1).__enter__()
    assert caught.value.retry_after_seconds == 60


@pytest.mark.parametrize(
    ("wanted", "prompt", "default", "answer"),
    [(None, 10, None, 90), (None, 10, 16, 16), (None, 90, 16, 10), (5, 95, None, 5), (90, 10, 16, 90)],
)
def test_answer_tokens(wanted: int | None, prompt: int, default: int | None, answer: int) -> None:
    found = answer_tokens(wanted, prompt_tokens=prompt, context_tokens=100, default=default, param="prompt")
    assert found == answer


@pytest.mark.parametrize(("wanted", "prompt"), [(None, 100), (None, 200), (6, 95), (1, 100)])
def test_answer_tokens_that_do_not_fit(wanted: int | None, prompt: int) -> None:
    with pytest.raises(ContextExceededError, match="100 tokens"):
        answer_tokens(wanted, prompt_tokens=prompt, context_tokens=100, default=16, param="prompt")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_tokens_are_remembered_for_their_time_only(tmp_path: Path) -> None:
    clock = Clock()
    with registry.open(tmp_path / "registry") as reg:
        reg.create_tenant("acme")
        issued = reg.create_token("acme", "reader")
        authenticator = Authenticator(reg, is_loopback=True, remember_seconds=10.0, clock=clock)

        async def ask(header: str | None) -> str | None:
            return (await authenticator.principal_of(header, host=None, origin=None)).tenant

        assert await ask(f"Bearer {issued.secret}") == "acme"
        reg.revoke_token(issued.token_id)
        assert await ask(f"bearer  {issued.secret}") == "acme"
        clock.now = 10.0
        with pytest.raises(WrongTokenError):
            await ask(f"Bearer {issued.secret}")
        with pytest.raises(MissingTokenError):
            await ask(None)
        authenticator.close()


async def test_tokens_are_needed_from_the_first_one_on(tmp_path: Path) -> None:
    clock = Clock()
    with registry.open(tmp_path / "registry") as reg:
        authenticator = Authenticator(reg, is_loopback=True, remember_seconds=10.0, clock=clock)
        assert (await authenticator.principal_of(None, host="localhost", origin=None)).is_operator
        reg.create_tenant("acme")
        issued = reg.create_token("acme", "reader")
        clock.now = 10.0
        with pytest.raises(MissingTokenError):
            await authenticator.principal_of(None, host="localhost", origin=None)
        reg.revoke_token(issued.token_id)
        clock.now = 100.0
        with pytest.raises(MissingTokenError):
            await authenticator.principal_of(None, host="localhost", origin=None)
        beyond = Authenticator(reg, is_loopback=False, remember_seconds=10.0, clock=clock)
        with pytest.raises(MissingTokenError):
            await beyond.principal_of(None, host="localhost", origin=None)
        authenticator.close()
        beyond.close()


async def test_tokens_survive_an_outage_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(secret: str) -> None:
        raise StorageError("no database")

    clock = Clock()
    with registry.open(tmp_path / "registry") as reg:
        reg.create_tenant("acme")
        issued = reg.create_token("acme", "reader")
        other = reg.create_token("acme", "reader")
        authenticator = Authenticator(reg, is_loopback=True, remember_seconds=10.0, clock=clock)

        async def ask(secret: str) -> str | None:
            return (await authenticator.principal_of(f"Bearer {secret}", host=None, origin=None)).tenant

        assert await ask(issued.secret) == "acme"
        monkeypatch.setattr(reg, "authenticate", down)
        with pytest.raises(RegistryUnavailableError):
            await ask(other.secret)
        clock.now = 3599.0
        assert await ask(issued.secret) == "acme"
        clock.now = 3601.0
        with pytest.raises(RegistryUnavailableError):
            await ask(issued.secret)
        authenticator.close()
