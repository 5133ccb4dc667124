"""The walk of a generation request, from its body to its answer; the routes differ only in their `Dialect`.

Read -> let in -> resolve the model, once -> prompt to token ids -> fits the context -> adapter on disk -> the engine.
Whatever was taken on the way (a place in the queue, a pinned adapter, sequences in the engine) is given back on every
way out, also when the client leaves.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from litestar import Request
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from registry.http.request_id import request_id_of
from registry.principal import Principal
from serving.api.choices import ChoiceDelta, ChoicePlan, Choices, Finish
from serving.api.dialect import Dialect, Document, Head, Usage, WholeChoice
from serving.api.disconnect import unless_client_leaves
from serving.api.errors import answer_of
from serving.api.limits import answer_tokens
from serving.api.request_key import REQUEST_KEY_HEADER, request_key_of
from serving.api.request_record import RequestRecord
from serving.api.sampling import includes_usage, sampling_of, stop_strings_of
from serving.api.schemas import SamplingFields
from serving.api.selecting import select
from serving.api.service import Service, service_of
from serving.api.streaming import EventStream
from serving.errors import InvalidFieldError
from serving.grammars.errors import GrammarRefusedError
from serving.messages import AdapterUse
from serving.served_base import ServedBase
from serving.target import Selection
from serving.transcript import Passage, ShownToken

OPERATOR_TENANT = "~operator"
"""No tenant's name begins with "~"."""


@dataclass
class _Walk:
    """One request on its way. Owned by its task; `taken` gives back what was taken."""

    service: Service
    dialect: Dialect
    record: RequestRecord
    principal: Principal
    request_key: str | None
    taken: AsyncExitStack = field(default_factory=AsyncExitStack)


@dataclass(frozen=True)
class _Running:
    """A request in the engine."""

    selection: Selection
    head: Head
    prompt_tokens: int
    count: int
    deltas: AsyncIterator[ChoiceDelta]
    include_usage: bool


async def generate(request: Request[Any, Any, Any], read: Callable[[], Awaitable[Dialect]]) -> ASGIApp:
    """Answer a generation request, plain or as a stream."""
    service = service_of(request)
    route = request.route_handler.name or "generate"
    record = RequestRecord(service.instruments, service.adapters_in_use, route, request_id_of(request.scope))
    taken = AsyncExitStack()
    try:
        dialect = await read()
        key = request_key_of(request.headers.get(REQUEST_KEY_HEADER), dialect.fields)
        walk = _Walk(service, dialect, record, request.auth, key, taken)
        if not dialect.fields.stream:
            return await unless_client_leaves(request.receive, _plain(walk))
        return await unless_client_leaves(request.receive, _stream(walk))
    except BaseException as error:
        await taken.aclose()
        record.close(outcome_of(error))
        raise


async def _end(walk: _Walk, error: BaseException | None) -> None:
    """Give everything back and report."""
    await walk.taken.aclose()
    walk.record.close(outcome_of(error))
    if error is None:
        walk.service.gate.learn(walk.record.seconds)


def outcome_of(error: BaseException | None) -> str:
    """How metrics and the log name the way a request ended."""
    if error is None:
        return "ok"
    return answer_of(error).code if isinstance(error, Exception) else "cancelled"


async def _plain(walk: _Walk) -> ASGIApp:
    running = await _start(walk)
    texts: list[list[str]] = [[] for _ in range(running.count)]
    tokens: list[list[ShownToken]] = [[] for _ in range(running.count)]
    reasons: dict[int, Finish] = {}
    async for delta in running.deltas:
        texts[delta.index].append(delta.passage.text)
        tokens[delta.index].extend(delta.passage.tokens)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason
    choices = [
        WholeChoice(index, Passage("".join(texts[index]), tuple(tokens[index])), reasons[index])
        for index in range(running.count)
    ]
    usage = Usage(running.prompt_tokens, walk.record.completion_tokens)
    document = walk.dialect.whole(running.head, choices, usage, running.selection.base.tokenization)
    await _end(walk, None)
    return ASGIResponse(
        body=msgspec.json.encode(document), media_type="application/json", headers=running.selection.headers()
    )


async def _stream(walk: _Walk) -> ASGIApp:
    """Starts when the first piece is there, so that a request that fails before has a status of its own."""
    running = await _start(walk)
    first = await anext(running.deltas)
    return EventStream(
        _events(walk, running, first),
        headers=running.selection.headers(),
        request_id=walk.record.request_id,
        send_seconds=walk.service.settings.limits.send_seconds,
        end=partial(_end, walk),
    )


async def _events(walk: _Walk, running: _Running, first: ChoiceDelta) -> AsyncIterator[Document]:
    dialect, head, tokenization = walk.dialect, running.head, running.selection.base.tokenization
    nothing_yet: Document = {"usage": None} if running.include_usage else {}
    for index in range(running.count):
        for chunk in dialect.opening(head, index, tokenization):
            yield chunk | nothing_yet
    async for delta in _chained(first, running.deltas):
        for chunk in dialect.chunks(head, delta.index, delta.passage, delta.finish_reason, tokenization):
            yield chunk | nothing_yet
    if running.include_usage:
        yield dialect.closing(head, Usage(running.prompt_tokens, walk.record.completion_tokens))


async def _chained(first: ChoiceDelta, rest: AsyncIterator[ChoiceDelta]) -> AsyncIterator[ChoiceDelta]:
    yield first
    async for delta in rest:
        yield delta


async def _start(walk: _Walk) -> _Running:
    """Everything up to the engine."""
    service, dialect, fields = walk.service, walk.dialect, walk.dialect.fields
    base = service.running_base()
    tenant = walk.principal.tenant or OPERATOR_TENANT
    walk.record.asked_by(tenant, fields.user)
    include_usage = includes_usage(fields)
    answers_each = fields.n or 1
    count = dialect.prompt_count * answers_each
    walk.taken.enter_context(service.gate.admit(walk.principal.tenant, count, max_running=base.max_running))
    key = walk.request_key
    selection = await select(service.loader, fields, walk.principal, base, request_key=key)
    walk.record.resolved(selection)
    base = selection.own_base
    prompts = await service.tokenizer_threads.run(dialect.encode, base)
    walk.record.prompt_tokens = sum(map(len, prompts))
    samplings = [
        sampling_of(fields, base, max_tokens=_answer_tokens(dialect, prompt, base), logprobs=dialect.logprobs)
        for prompt in prompts
    ]
    grammar = await _grammar(walk, tenant, base)
    adapters = await _held(walk, selection)
    plan = ChoicePlan(
        tenant,
        prompts,
        answers_each,
        samplings,
        adapters,
        stop_strings_of(fields),
        grammar,
        priority=fields.priority or 0,
        draft_tokens=_draft_tokens(fields, service.settings.speculative_ngram),
    )
    choices = Choices(service.engine, base.tokenization, plan, walk.record)
    await walk.taken.enter_async_context(choices)
    head = Head(uuid.uuid4().hex, int(time.time()), selection.name, selection.fingerprint)
    return _Running(selection, head, walk.record.prompt_tokens, count, choices.deltas(), include_usage)


async def _held(walk: _Walk, selection: Selection) -> tuple[AdapterUse, ...]:
    """The adapters on this disk, for as long as the request runs."""
    held: list[AdapterUse] = []
    for part in selection.parts:
        uses = await walk.taken.enter_async_context(walk.service.loader.hold(part.target))
        held += [msgspec.structs.replace(use, weight=part.weight) for use in uses]
    return tuple(held)


async def _grammar(walk: _Walk, tenant: str, base: ServedBase) -> str | None:
    """What the answers must follow, compiled once by a process that may die of it. Raises InvalidFieldError."""
    service, dialect = walk.service, walk.dialect
    if not dialect.is_constrained:
        return None
    asked = await service.tokenizer_threads.run(dialect.asked, base)
    if asked is None:
        return None
    try:
        return await service.running_checker().check(tenant, asked.source)
    except GrammarRefusedError as error:
        raise asked.refused(error.reason) from None


def _draft_tokens(fields: SamplingFields, default: int) -> int:
    return default if fields.speculative_ngram is None else fields.speculative_ngram


def _answer_tokens(dialect: Dialect, prompt: list[int], base: ServedBase) -> int:
    if not prompt:
        raise InvalidFieldError("The prompt is empty.", param=dialect.prompt_param)
    return answer_tokens(
        dialect.wanted_tokens,
        prompt_tokens=len(prompt),
        context_tokens=base.context_tokens,
        default=dialect.default_tokens,
        param=dialect.prompt_param,
    )
