"""The engine: requests in, tokens out.

It does: `step()`: schedule -> run -> sample -> publish. It does not: sockets or processes (`process`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch

from serving.engine.adapter_pool import AdapterPool
from serving.engine.answer import Answer, choose
from serving.engine.constrained import ConstrainedRequests
from serving.engine.entrance import Entrance
from serving.engine.errors import AdapterRefusedError, EngineError, RequestRefusedError
from serving.engine.grammar_pool import GrammarPool
from serving.engine.proofs import Proofs
from serving.engine.request import Request, Row
from serving.engine.runner import Runner
from serving.engine.scheduler import Scheduler
from serving.engine.snapshot import Counters, take_snapshot
from serving.messages import (
    AdapterUse,
    Fault,
    FinishReason,
    Generate,
    Output,
    Stats,
    TokenLogprob,
)

logger = logging.getLogger(__name__)


class Engine:
    """One base, its adapters and the requests in flight. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        grammars: GrammarPool,
        *,
        context_tokens: int,
        end_token_ids: frozenset[int],
        check_probes: bool,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.pool: AdapterPool = scheduler.pool
        self.constrained = ConstrainedRequests(grammars)
        self.counters = Counters()
        blocks = scheduler.blocks
        self.context_tokens = min(context_tokens, blocks.total * blocks.block_tokens)  # the whole KV cache, if less
        self.end_token_ids = end_token_ids
        self._proofs = Proofs(runner, scheduler.pool) if check_probes else None
        self._entrance = Entrance(
            scheduler.pool,
            context_tokens=self.context_tokens,
            vocabulary_tokens=runner.base.description.vocabulary_size,
        )
        self._requests: dict[str, Request] = {}
        self._faults: list[Output] = []  # and other ends that no forward brings about: part of the next outputs

    # ------------------------------------------------------------------------------------------------- requests
    @property
    def has_work(self) -> bool:
        """Whether a step could do something, now or once an adapter is read."""
        return bool(self._requests or self._faults or self.pool.has_work)

    def add(self, message: Generate) -> None:
        """Take a request. One that cannot run is answered with a fault in the next step's outputs."""
        try:
            if message.request_id in self._requests:
                raise RequestRefusedError(f"request id {message.request_id} is in use")
            request = self._entrance.take(message)
        except EngineError as error:
            self._faults.append(_failed(message.request_id, error.fault()))
            return
        self._requests[request.request_id] = request
        if message.grammar is None:
            self.scheduler.add(request)
        else:
            self.constrained.add(request, message.grammar)

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds, now. Unknown ids are finished ones."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._release(request)

    def preload(self, adapter: AdapterUse) -> None:
        """Read an adapter before somebody asks for it."""
        for part in adapter.parts:
            self.pool.preload(part)

    def keep(self, adapters: Iterable[AdapterUse]) -> None:
        """Keep these adapters in memory, and no others."""
        self.pool.keep(part for adapter in adapters for part in adapter.parts)

    # ------------------------------------------------------------------------------------------------- the step
    def step(self) -> list[Output]:
        """One forward for every row that can run. Returns what is new for each request."""
        begin = time.perf_counter()
        self._collect_adapters()
        self._collect_grammars()
        rows = self._proven_rows(self.scheduler.schedule())
        outputs, self._faults = self._faults, []
        if not rows:
            return outputs
        try:
            batch, logits = self.runner.run(rows)
        except torch.OutOfMemoryError:
            logger.exception("out of memory in a step of %d rows", len(rows))
            return [*outputs, self._fail_youngest(rows)]
        late = self.constrained.late(batch.sampled)
        sampled = choose(batch.sampled, late, logits, self.end_token_ids)
        answers = {answer.row.request.request_id: answer for answer in sampled}
        for row in rows:
            if row.request.request_id in answers:
                self._account(row.request, answers[row.request.request_id].computed)
            else:  # a late row computes its last token once more, to the same logits, when what it may say is known
                self._account(row.request, row.count - (row.request.request_id in late))
        outputs += [self._publish(answer) for answer in sampled]
        self.counters.steps += 1
        self.counters.last_step_rows = len(rows)
        self.counters.step_seconds += time.perf_counter() - begin
        return outputs

    def stats(self) -> Stats:
        """A snapshot of queues, memory and counters."""
        return take_snapshot(self.scheduler, self.counters, slot_bytes=self.runner.sites.factor_bytes)

    def check_integrity(self) -> None:
        """Everything that is accounted for adds up."""
        self.scheduler.check_integrity()
        held = [*self.scheduler.running, *self.scheduler.waiting, *self.constrained.compiling]
        assert len(held) == len(self._requests)
        assert {request.request_id for request in held} == set(self._requests)

    # ------------------------------------------------------------------------------------------------- its parts
    def _collect_adapters(self) -> None:
        for refusal in self.pool.collect(self.scheduler.wanted_digests):
            self._refuse_adapter(refusal)
        for request in [each for each in self.scheduler.waiting if each.adapters and not each.is_fitting]:
            if all(self.pool.is_loaded(use.digest) for use in request.parts):
                try:
                    self._entrance.check_fit(request)
                except RequestRefusedError as error:
                    self._faults.append(self._end(request, "error", fault=error.fault()))

    def _collect_grammars(self) -> None:
        """Queue requests whose grammar is compiled, and end those that have nothing more to say."""
        for request, refusal in self.constrained.compiled():
            if refusal is None:
                self.scheduler.add(request)
            else:
                self._faults.append(self._end(request, "error", fault=refusal.fault()))
        for request, allowed in self.constrained.ended():
            if allowed.is_complete:
                self._faults.append(self._end(request, "stop"))
            else:
                refused = RequestRefusedError(f"the answer cannot go on: {allowed.problem}")
                self._faults.append(self._end(request, "error", fault=refused.fault()))

    def _refuse_adapter(self, refusal: AdapterRefusedError) -> None:
        """Every request for this adapter fails; everybody else goes on."""
        logger.warning("%s", refusal)
        for request in [each for each in self._requests.values() if refusal.digest in each.digests]:
            self._faults.append(self._end(request, "error", fault=refusal.fault()))
        self.pool.drop(refusal.digest)

    def _proven_rows(self, rows: list[Row]) -> list[Row]:
        """The rows whose adapters compute what they should; an adapter that does not is refused."""
        if self._proofs is None:
            return rows
        proven, refused = self._proofs.admit(rows)
        for refusal in refused:
            self._refuse_adapter(refusal)
        return [row for row in proven if row.request.request_id in self._requests]

    def _account(self, request: Request, count: int) -> None:
        """So many more tokens are in the KV cache now; those of the prompt count as served, once."""
        self.scheduler.advance(request, count)
        served = min(request.computed, request.prompt_tokens) - request.charged_tokens
        if served > 0:
            found = max(0, request.cached_tokens - request.charged_tokens)  # in the cache: served, but not computed
            request.charged_tokens += served
            self.counters.prompt_tokens += served
            self.scheduler.fair.charge(request, prompt_tokens=served - found)

    def _publish(self, answer: Answer) -> Output:
        """What a step says of a request, which ends where its text does."""
        request, picks = answer.row.request, answer.picks
        if answer.row.draft and request.drafts is not None:
            request.drafts.judge(len(answer.row.draft), answer.accepted)
            self.counters.drafted_tokens += len(answer.row.draft)
            self.counters.accepted_tokens += answer.accepted
        if not picks[-1].finite:
            self.scheduler.blocks.forget(request.blocks)
            return self._end(request, "error", fault=_not_finite(request))
        shown = picks[:-1] if answer.is_stopped else picks
        token_ids = [pick.token_id for pick in shown]
        logprobs = [pick.logprob for pick in shown if pick.logprob is not None] or None
        self.counters.generation_tokens += len(token_ids)
        self.scheduler.fair.charge(request, generated_tokens=len(token_ids))
        if answer.reason is not None:
            stop_token_id = picks[-1].token_id if answer.is_stopped else None
            return self._end(
                request, answer.reason, token_ids=token_ids, logprobs=logprobs, stop_token_id=stop_token_id
            )
        return Output(
            request_id=request.request_id, token_ids=token_ids, logprobs=logprobs, queue_seconds=_once(request)
        )

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        *,
        token_ids: list[int] | None = None,
        logprobs: list[TokenLogprob] | None = None,
        stop_token_id: int | None = None,
        fault: Fault | None = None,
    ) -> Output:
        del self._requests[request.request_id]
        self._release(request)
        return Output(
            request_id=request.request_id,
            token_ids=token_ids or [],
            logprobs=logprobs,
            finish_reason=reason,
            stop_token_id=stop_token_id,
            fault=fault,
            queue_seconds=_once(request),
        )

    def _release(self, request: Request) -> None:
        """Free what a request holds, wherever it is."""
        if not self.constrained.remove(request):
            self.scheduler.finish(request)

    def _fail_youngest(self, rows: list[Row]) -> Output:
        """The device has no memory for this step: the request that came last gives way, and the step is tried again."""
        youngest = max((row.request for row in rows), key=lambda request: request.arrival)
        fault = Fault(
            code="out_of_memory", message="the device has no memory left for this request; try it again later"
        )
        return self._end(youngest, "error", fault=fault)


def _once(request: Request) -> float | None:
    """The time that the request waited, for its first output only."""
    seconds, request.queue_seconds = request.queue_seconds, None
    return seconds


def _not_finite(request: Request) -> Fault:
    """The base alone computes numbers: with adapters it is their weights that are too large for this prompt."""
    if not request.adapters:
        return Fault(code="internal", message="the base's output for this request is not finite")
    named = ", ".join(use.digest[:19] for use in request.adapters)
    message = (
        f"with adapter {named} the output for this prompt is not finite (NaN or infinity): the adapter's values, its "
        "alpha or its weight in the request are too large; ask for another version or a smaller weight"
    )
    logger.warning("%s: %s", request.request_id, message)
    return Fault(code="adapter_rejected", message=message)


def _failed(request_id: str, fault: Fault) -> Output:
    return Output(request_id=request_id, finish_reason="error", fault=fault)
