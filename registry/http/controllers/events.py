"""The feed of events: pages, long polls, and a stream of server-sent events that resumes where it was cut."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from registry.errors import InvalidValueError, RegistryError
from registry.event import PAGE_EVENTS, Event, EventPage
from registry.events import PAGE_EVENTS_LIMIT, WAIT_SECONDS_LIMIT
from registry.http.service import RegistryService, caller_of, service_of
from registry.principal import Principal

KINDS_LIMIT = 32
CURSOR_LIMIT = 2**53
KEEP_ALIVE_SECONDS = 15.0
STREAM_SECONDS = 600.0
RECONNECT_MILLISECONDS = 1000

AfterQuery = Annotated[
    int | None,
    QueryParameter(
        name="after", ge=0, le=CURSOR_LIMIT, description="`cursor` of the page before; without it the feed begins now."
    ),
]
LimitQuery = Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_EVENTS_LIMIT, description="Events of a page.")]
WaitQuery = Annotated[
    float,
    QueryParameter(
        name="wait_seconds", ge=0, le=WAIT_SECONDS_LIMIT, description="How long to wait for something to see."
    ),
]
KindsQuery = Annotated[
    list[str] | None, QueryParameter(name="kinds", max_items=KINDS_LIMIT, description="Only these; may be repeated.")
]
LastEventId = Annotated[
    str | None,
    HeaderParameter(name="last-event-id", max_length=20, description="Where a stream was cut; clients send it."),
]
SSE = {200: ResponseSpec(None, media_type="text/event-stream", generate_examples=False, description="The stream.")}


class EventController(Controller):
    """What happened, in the order of commits, as far as the caller may read it."""

    path = "/events"
    tags = ("events",)

    @get()
    async def list_events(
        self,
        request: Request[Any, Any, Any],
        after: AfterQuery = None,
        limit: LimitQuery = PAGE_EVENTS,
        kinds: KindsQuery = None,
        wait_seconds: WaitQuery = 0.0,
    ) -> EventPage:
        """Events after a cursor, oldest first. With `wait_seconds`, an empty page comes only when the time is over."""
        service, caller = service_of(request), caller_of(request)
        deadline = time.monotonic() + wait_seconds
        with ExitStack() as stack:
            if wait_seconds:
                stack.enter_context(service.tide.client(caller))
            while True:
                page = await _read(service, caller, after, limit, kinds)
                left = deadline - time.monotonic()
                is_answer = page.events or left <= 0 or not page.is_complete
                if is_answer or not await service.tide.wait_past(page.cursor, left):
                    return page
                after = page.cursor

    @get("/stream", responses=SSE)
    async def stream_events(
        self,
        request: Request[Any, Any, Any],
        after: AfterQuery = None,
        kinds: KindsQuery = None,
        last_event_id: LastEventId = None,
    ) -> Stream:
        """Server-sent events: `id` is the cursor, `event` the kind, `data` the event.

        `Last-Event-ID` goes on where a stream was cut, and counts for more than `after`. The server ends a stream after
        ten minutes, and when the token is no longer good; clients connect again by themselves.
        """
        service, caller = service_of(request), caller_of(request)
        if last_event_id is not None:
            if not (last_event_id.isascii() and last_event_id.isdigit()):
                raise InvalidValueError("last-event-id", "it is not an id of this stream")
            after = int(last_event_id)
        first = await _read(service, caller, after, PAGE_EVENTS, kinds)
        with service.tide.client(caller):  # says so now if there is no place; the stream takes its own
            pass
        return Stream(
            _stream(service, request, caller, first, kinds),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


async def _read(
    service: RegistryService, caller: Principal, after: int | None, limit: int, kinds: list[str] | None
) -> EventPage:
    return await service.tide.threads.run(service.registry.events, caller, after=after, limit=limit, kinds=kinds)


async def _stream(
    service: RegistryService,
    request: Request[Any, Any, Any],
    caller: Principal,
    page: EventPage,
    kinds: list[str] | None,
) -> AsyncIterator[bytes]:
    """The stream's bytes. Keep-alives move its cursor past what may not be seen; the token is checked as often."""
    ends_at, check_at = time.monotonic() + STREAM_SECONDS, time.monotonic() + KEEP_ALIVE_SECONDS
    try:
        with service.tide.client(caller):
            yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
            if not page.is_complete:
                yield b"event: feed.incomplete\ndata: {}\n\n"
            if not page.events:
                yield _cursor(page)
            while True:
                for event in page.events:
                    yield _encoded(event)
                if time.monotonic() >= ends_at or service.draining.is_set():
                    return
                is_news = await service.tide.wait_past(page.cursor, KEEP_ALIVE_SECONDS)
                if (
                    not is_news or time.monotonic() >= check_at
                ):  # a busy stream checks its token as often as a quiet one
                    await service.authenticator.principal_of_scope(request.scope)
                    check_at = time.monotonic() + KEEP_ALIVE_SECONDS
                if not is_news:
                    yield _cursor(page)
                page = await _read(service, caller, page.cursor, PAGE_EVENTS, kinds)
    except RegistryError:  # the status is sent: an end is all that can be said, and the client asks again
        return


def _cursor(page: EventPage) -> bytes:
    """Moves the client's cursor without an event."""
    return b": here\nid: %d\n\n" % page.cursor


def _encoded(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), msgspec.json.encode(event))
