"""The sequences of one request (its prompts, n answers each), run side by side in the engine.

It does: start a stream for each, turn its tokens into text, end it at a stop string, and give everything in the order
of arrival. Leaving the block early aborts what still runs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import msgspec

from serving.api.disconnect import cancel_and_wait
from serving.api.request_record import RequestRecord, SequenceRecord
from serving.engine_client import EngineClient, fault_of
from serving.errors import EngineFaultError
from serving.messages import AdapterUse, Generate, Output, Sampling
from serving.tokenization import Tokenization
from serving.transcript import Passage, Transcript

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class ChoicePlan:
    """What is asked of the engine. Each prompt has `answers_each` answers; choice i is of prompt i // answers_each."""

    tenant: str
    prompts: Sequence[list[int]]
    answers_each: int
    samplings: Sequence[Sampling]
    adapters: tuple[AdapterUse, ...]
    stops: tuple[str, ...]
    grammar: str | None
    priority: int
    draft_tokens: int

    @property
    def count(self) -> int:
        """Number of choices."""
        return len(self.prompts) * self.answers_each

    def request(self, index: int) -> Generate:
        """The engine's request for one choice. With a seed, each answer to a prompt has its own, derived from it."""
        sampling = self.samplings[index // self.answers_each]
        if sampling.seed is not None:
            seed = (sampling.seed + index % self.answers_each) % 2**63
            sampling = msgspec.structs.replace(sampling, seed=seed)
        return Generate(
            request_id=uuid.uuid4().hex,
            tenant=self.tenant,
            prompt_token_ids=self.prompts[index // self.answers_each],
            sampling=sampling,
            adapters=self.adapters,
            grammar=self.grammar,
            priority=self.priority,
            draft_tokens=self.draft_tokens,
        )


@dataclass(frozen=True)
class ChoiceDelta:
    """The next piece of one choice; the last one has a finish reason."""

    index: int
    passage: Passage
    finish_reason: Finish | None = None


class Choices:
    """The running sequences: `async with` runs them, iteration gives their deltas. Owned by one request."""

    def __init__(
        self, engine: EngineClient, tokenization: Tokenization, plan: ChoicePlan, record: RequestRecord
    ) -> None:
        self._engine = engine
        self._tokenization = tokenization
        self._plan = plan
        self._record = record
        self._arrivals: asyncio.Queue[ChoiceDelta | BaseException] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Choices:
        self._tasks = [asyncio.create_task(self._follow(index)) for index in range(self._plan.count)]
        for task in self._tasks:
            task.add_done_callback(self._hand_over)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel_and_wait(*self._tasks)

    async def deltas(self) -> AsyncIterator[ChoiceDelta]:
        """Every piece of every choice. Raises the first error of any choice."""
        unfinished = self._plan.count
        while unfinished:
            arrival = await self._arrivals.get()
            if isinstance(arrival, BaseException):
                raise arrival
            unfinished -= arrival.finish_reason is not None
            yield arrival

    def _hand_over(self, task: asyncio.Task[None]) -> None:
        """A choice's error belongs to the request's own task, which raises it from `deltas`."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._arrivals.put_nowait(error)

    async def _follow(self, index: int) -> None:
        transcript = Transcript(self._tokenization.decode, self._plan.stops)
        request = self._plan.request(index)
        sequence = self._record.sequence(len(request.prompt_token_ids))
        async with aclosing(self._engine.stream(request)) as outputs:
            async for output in outputs:
                if output.finish_reason in ("error", "aborted"):
                    fault = fault_of(output)
                    raise EngineFaultError(fault.code, fault.message)
                delta = _delta_of(index, transcript, output)
                self._note(sequence, output, delta.finish_reason)
                if delta.passage.text or delta.passage.tokens or delta.finish_reason:
                    self._arrivals.put_nowait(delta)
                if delta.finish_reason:
                    return

    def _note(self, sequence: SequenceRecord, output: Output, finish_reason: Finish | None) -> None:
        tokens = len(output.token_ids) + (output.stop_token_id is not None)
        if tokens:
            sequence.took_tokens(tokens, queue_seconds=output.queue_seconds)
        if finish_reason:
            sequence.finished(finish_reason)


def _delta_of(index: int, transcript: Transcript, output: Output) -> ChoiceDelta:
    """What one step of the engine shows to the client."""
    passage = transcript.add(output.token_ids, output.logprobs)
    if transcript.is_stopped:
        return ChoiceDelta(index, passage, "stop")
    if output.finish_reason is None:
        return ChoiceDelta(index, passage)
    rest = transcript.finish()
    whole = Passage(passage.text + rest.text, passage.tokens + rest.tokens)
    return ChoiceDelta(
        index, whole, "length" if output.finish_reason == "length" and not transcript.is_stopped else "stop"
    )
