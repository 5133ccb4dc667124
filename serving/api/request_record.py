"""What happened to one generation request: the times and counts behind its metrics and its one line in the log.

It does: collect while the request runs, and report once at its end. It never sees prompts, answers or tokens' texts.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

from serving.api.adapters_in_use import AdaptersInUse
from serving.api.instruments import Instruments
from serving.target import Selection

USER_DIGITS = 12

logger = logging.getLogger("loraplex.requests")


class SequenceRecord:
    """The times of one sequence. Mutable; written by the task that follows the sequence."""

    def __init__(self, owner: RequestRecord, prompt_tokens: int, clock: Callable[[], float]) -> None:
        self._owner = owner
        self._prompt_tokens = prompt_tokens
        self._clock = clock
        self._started_at = clock()
        self._first_at: float | None = None
        self._last_at = self._started_at
        self._queue_seconds = 0.0
        self.tokens = 0

    def took_tokens(self, count: int, *, queue_seconds: float | None) -> None:
        """A step gave this sequence so many tokens."""
        now = self._clock()
        instruments = self._owner.instruments
        if self._first_at is None:
            self._first_at = now
            self._queue_seconds = queue_seconds or 0.0
            instruments.first_token(now - self._owner.started_at)
        else:
            instruments.next_token(now - self._last_at)
        self._last_at = now
        self.tokens += count

    def finished(self, reason: str) -> None:
        """The sequence is complete."""
        first_at = self._last_at if self._first_at is None else self._first_at
        self._owner.instruments.sequence_finished(
            reason,
            queue_seconds=self._queue_seconds,
            prefill_seconds=max(0.0, first_at - self._started_at - self._queue_seconds),
            decode_seconds=self._last_at - first_at,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self.tokens,
        )


class RequestRecord:
    """The record of one HTTP request. Mutable; owned by the request's task."""

    def __init__(
        self,
        instruments: Instruments,
        adapters_in_use: AdaptersInUse,
        route: str,
        request_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instruments = instruments
        self._adapters_in_use = adapters_in_use
        self.route = route
        self.request_id = request_id
        self.started_at = clock()
        self.prompt_tokens = 0
        self._clock = clock
        self._tenant = "-"
        self._user = "-"
        self._selection: Selection | None = None
        self._sequences: list[SequenceRecord] = []
        self._is_closed = False

    @property
    def completion_tokens(self) -> int:
        """Tokens of all sequences so far."""
        return sum(sequence.tokens for sequence in self._sequences)

    @property
    def seconds(self) -> float:
        """Time since the request arrived."""
        return self._clock() - self.started_at

    def asked_by(self, tenant: str, user: str | None) -> None:
        """Who asks. Of the client's own `user` only a short hash is kept."""
        self._tenant = tenant
        if user is not None:
            self._user = hashlib.sha256(user.encode()).hexdigest()[:USER_DIGITS]

    def resolved(self, selection: Selection) -> None:
        """What will serve it. From here to the end its adapters count as in use."""
        self._selection = selection
        for part in selection.parts:
            self._adapters_in_use.enter(part.version.digest, part.model)
            if part.target.side is None:
                self.instruments.canaries.is_over(part.model)
            else:
                self.instruments.canaries.began(part.model)

    def sequence(self, prompt_tokens: int) -> SequenceRecord:
        """The record of one more sequence, whose prompt is so long."""
        record = SequenceRecord(self, prompt_tokens, self._clock)
        self._sequences.append(record)
        return record

    def close(self, outcome: str) -> None:
        """The request has ended; the first outcome that is named counts."""
        if self._is_closed:
            return
        self._is_closed = True
        tokens, parts = self.completion_tokens, () if self._selection is None else self._selection.parts
        digests = [part.version.digest for part in parts]
        self.instruments.request_ended(
            self.route, outcome, seconds=self.seconds, digests=digests, generation_tokens=tokens
        )
        for part in parts:
            self._adapters_in_use.leave(part.version.digest, part.model)
            if part.target.side is not None:
                self.instruments.canaries.request_ended(
                    part.model, part.target.side, outcome=outcome, seconds=self.seconds, generation_tokens=tokens
                )
        logger.info(
            "%s %s %s tenant=%s user=%s adapter=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f",
            self.request_id,
            self.route,
            outcome,
            self._tenant,
            self._user,
            (None if self._selection is None else self._selection.identity) or "none",
            self.prompt_tokens,
            self.completion_tokens,
            self.seconds,
        )
