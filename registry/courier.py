"""The courier takes deliveries from the outbox and posts them to their webhooks, in threads of its own.

Any number of processes may run one: a delivery is claimed by one courier at a time. A delivery arrives at least once
and carries the same `webhook-id` each time. It is tried again after growing pauses; when it is given up, the reason
stays with it. What is posted is a Standard Webhooks payload: `{"type", "timestamp", "data"}`.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from registry.errors import ForbiddenAddressError, RegistryError, UpstreamError
from registry.outbound import OutboundPolicy, exchange
from registry.outbox import Claim, Outbox
from registry.webhook_signature import sign

ANSWER_BYTES = 4_096
"""How much of an answer is read, so that the connection ends well; none of it is kept."""
GONE = 410
MESSAGE_PREFIX = "msg_"
CLAIM_MARGIN_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CourierSettings:
    """How deliveries are tried. With the defaults the last attempt is about a day after the event."""

    attempts_limit: int = 12
    first_retry_seconds: float = 5.0
    retry_factor: float = 3.0
    longest_retry_seconds: float = 6 * 3600.0
    jitter: float = 0.2
    attempt_seconds: float = 15.0
    poll_seconds: float = 1.0
    at_once: int = 8

    def retry_seconds(self, attempts: int) -> float:
        """The pause after this many attempts, give or take the jitter."""
        pause = min(self.first_retry_seconds * self.retry_factor ** (attempts - 1), self.longest_retry_seconds)
        return pause * (1 + self.jitter * (2 * secrets.SystemRandom().random() - 1))


class Courier:
    """Posts deliveries until it is stopped. `_flying`, the attempts under way, belongs to its own thread."""

    def __init__(self, outbox: Outbox, policy: Callable[[], OutboundPolicy], settings: CourierSettings) -> None:
        self._outbox = outbox
        self._policy = policy
        self._settings = settings
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._flying: dict[Future[None], str] = {}

    def start(self) -> None:
        """Begin to deliver, in the background."""
        assert self._thread is None, "a courier starts once"
        self._thread = threading.Thread(target=self._run, name="loraplex-courier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more, and wait for the attempts under way (each has its time limit)."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._settings.attempt_seconds + 1)

    def _run(self) -> None:
        with ThreadPoolExecutor(self._settings.at_once, "loraplex-webhook") as pool:
            while not self._stopping.is_set():
                try:
                    claimed = self._claim_and_post(pool)
                except RegistryError as error:
                    logger.error("the outbox cannot be read: %s", error)
                    claimed = 0
                if self._flying:
                    wait(self._flying, self._settings.poll_seconds, "FIRST_COMPLETED")
                elif not claimed:
                    self._stopping.wait(self._settings.poll_seconds)

    def _claim_and_post(self, pool: ThreadPoolExecutor) -> int:
        """Hand what is due to free threads, one delivery of a webhook at a time: a slow one delays only itself."""
        for flight in [flight for flight in self._flying if flight.done()]:
            del self._flying[flight]
            if (error := flight.exception()) is not None:
                logger.error("an attempt failed in a way that is not foreseen", exc_info=error)
        room = self._settings.at_once - len(self._flying)
        now = datetime.now(UTC)
        due_at = self._outbox.next_due(except_for=self._flying.values())
        if room == 0 or due_at is None or due_at > now:
            return 0
        seconds = self._settings.attempt_seconds + CLAIM_MARGIN_SECONDS
        policy = self._policy()
        claims = self._outbox.claim(now, seconds=seconds, limit=room, except_for=self._flying.values())
        for claim in claims:
            self._flying[pool.submit(self._deliver, claim, policy)] = claim.webhook_id
        return len(claims)

    def _deliver(self, claim: Claim, policy: OutboundPolicy) -> None:
        """One attempt, and its outcome in the database. A claim whose outcome cannot be written runs out by itself."""
        try:
            try:
                status = self._post(claim, policy)
            except (ForbiddenAddressError, UpstreamError) as error:
                self._conclude(claim, None, error.message)
                return
            if 200 <= status < 300:
                self._outbox.arrived(claim, datetime.now(UTC), status)
            else:
                self._conclude(claim, status, f"it answered {status}")
        except RegistryError as error:
            logger.error("the outcome of %r cannot be written: %s", claim, error)

    def _conclude(self, claim: Claim, status: int | None, failure: str) -> None:
        now = datetime.now(UTC)
        is_gone = status == GONE
        if is_gone or claim.attempts >= self._settings.attempts_limit:
            logger.warning("%r is given up: %s", claim, failure)
            self._outbox.give_up(claim, now, status=status, failure=failure, is_gone=is_gone)
        else:
            next_at = now + timedelta(seconds=self._settings.retry_seconds(claim.attempts))
            self._outbox.failed(claim, status=status, failure=failure, next_at=next_at)

    def _post(self, claim: Claim, policy: OutboundPolicy) -> int:
        body = json.dumps(
            {
                "type": claim.kind,
                "timestamp": claim.at.isoformat().replace("+00:00", "Z"),
                "data": {"event": claim.event_id, "adapter": claim.adapter, **json.loads(claim.document)},
            },
            separators=(",", ":"),
        ).encode()
        signed = sign(
            claim.secret, message_id=f"{MESSAGE_PREFIX}{claim.delivery_id}", timestamp=int(time.time()), body=body
        )
        headers = {"Content-Type": "application/json", **signed}
        seconds = self._settings.attempt_seconds
        with exchange("POST", claim.url, policy=policy, seconds=seconds, headers=headers, body=body) as answer:
            answer.read(ANSWER_BYTES)
            return answer.status
