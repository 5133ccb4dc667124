"""The demo's clients: the stock `openai` package, one client per tenant, talking to the running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from openai import AsyncOpenAI, NotFoundError

from loraplex.errors import DemoError

T = TypeVar("T")

DIGEST_HEADER = "x-loraplex-adapter"
ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class Question:
    """One request: who asks which model what."""

    tenant: str
    model: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What came back. `digest` is the version that answered, None for the base alone."""

    text: str
    digest: str | None
    completion_tokens: int


class Clients:
    """One OpenAI client per tenant."""

    def __init__(self, by_tenant: Mapping[str, AsyncOpenAI]) -> None:
        self._by_tenant = by_tenant

    async def ask(self, question: Question, *, max_tokens: int, ignore_eos: bool = False) -> Answer:
        """Ask greedily, so that the same question has the same answer."""
        raw = await self._by_tenant[question.tenant].chat.completions.with_raw_response.create(
            model=question.model,
            messages=[{"role": "user", "content": question.prompt}],
            temperature=0.0,
            max_completion_tokens=max_tokens,
            extra_body={"ignore_eos": True} if ignore_eos else None,
        )
        completion = raw.parse()
        usage = completion.usage
        if usage is None:
            raise DemoError("the server counted no tokens of an answer")
        text = completion.choices[0].message.content or ""
        return Answer(text, raw.headers.get(DIGEST_HEADER), usage.completion_tokens)

    async def is_hidden(self, question: Question) -> bool:
        """Whether the server says that the model does not exist, as it does of another tenant's private adapter."""
        try:
            await self.ask(question, max_tokens=1)
        except NotFoundError:
            return True
        return False


@asynccontextmanager
async def open_clients(url: str, tokens: Mapping[str, str]) -> AsyncIterator[Clients]:
    """A client for each tenant's token."""
    async with AsyncExitStack() as stack:
        clients = {
            tenant: await stack.enter_async_context(
                AsyncOpenAI(base_url=f"{url}/v1", api_key=token, timeout=ANSWER_SECONDS)
            )
            for tenant, token in tokens.items()
        }
        yield Clients(clients)


async def at_once(calls: Iterable[Callable[[], Awaitable[T]]], *, most: int) -> Sequence[T]:
    """Run the calls, at most so many at a time; the results come in the order of the calls."""
    turn = asyncio.Semaphore(most)

    async def limited(call: Callable[[], Awaitable[T]]) -> T:
        async with turn:
            return await call()

    return await asyncio.gather(*(limited(call) for call in calls))
