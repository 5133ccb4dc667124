"""Errors to HTTP: the only place of the server that knows statuses, and the one handler of all routes.

The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`. Only texts that were written for clients get
out; whatever else went wrong is in the log under the request's id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.routes import HTTPRoute

from registry.http.request_id import request_id_of
from serving import errors

logger = logging.getLogger(__name__)

INVALID, ACCESS, LIMIT, SERVER = "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
RESTART_SECONDS = 5


@dataclass(frozen=True)
class Answer:
    """How one kind of error is answered. `message` stands in for the error's own text where that is not for clients."""

    status: int
    type: str
    code: str
    message: str | None = None
    retry_after_seconds: int | None = None


ANSWERS: Mapping[type[Exception], Answer] = {
    errors.MalformedBodyError: Answer(400, INVALID, "invalid_json"),
    errors.InvalidFieldError: Answer(400, INVALID, "invalid_field"),
    errors.ContextExceededError: Answer(400, INVALID, "context_length_exceeded"),
    errors.MissingTokenError: Answer(401, ACCESS, "invalid_api_key"),
    errors.WrongTokenError: Answer(401, ACCESS, "invalid_api_key"),
    errors.ForbiddenError: Answer(403, ACCESS, "forbidden"),
    errors.ModelNotFoundError: Answer(404, INVALID, "model_not_found"),
    errors.AdapterBaseMismatchError: Answer(422, INVALID, "adapter_base_mismatch"),
    errors.QueueFullError: Answer(429, LIMIT, "queue_full"),
    errors.ClientGoneError: Answer(499, INVALID, "client_gone"),
    errors.EngineLostError: Answer(
        503, SERVER, "engine_lost", "The engine was lost while it worked on this request. Try again.", RESTART_SECONDS
    ),
    errors.EngineUnavailableError: Answer(503, SERVER, "engine_unavailable", None, RESTART_SECONDS),
    errors.ShuttingDownError: Answer(503, SERVER, "server_shutting_down", None, RESTART_SECONDS),
    errors.EngineBusyError: Answer(503, SERVER, "engine_busy", "The engine is busy. Try again.", RESTART_SECONDS),
    errors.EngineStartError: Answer(
        503, SERVER, "engine_unavailable", "The engine could not be started.", RESTART_SECONDS
    ),
    errors.RegistryUnavailableError: Answer(503, SERVER, "registry_unavailable", None, RESTART_SECONDS),
}
"""Also the source of the error table in docs/serving.md."""

FAULT_ANSWERS: Mapping[str, Answer] = {
    "adapter_rejected": Answer(422, INVALID, "adapter_rejected"),
    "invalid_request": Answer(400, INVALID, "invalid_request"),
    "out_of_memory": Answer(503, SERVER, "out_of_memory", None, RESTART_SECONDS),
    "internal": Answer(500, SERVER, "internal_error", "The engine failed on this request."),
}
"""What the engine says about one request (`serving.messages.FaultCode`)."""

HTTP_ANSWERS: Mapping[int, Answer] = {
    404: Answer(404, INVALID, "unknown_route", "There is no such route."),
    405: Answer(405, INVALID, "method_not_allowed", "This route does not know this method."),
    413: Answer(413, INVALID, "body_too_large", "The body is larger than this server accepts."),
}
"""What the web framework itself refuses."""

BAD_REQUEST = Answer(400, INVALID, "bad_request", "The request cannot be read.")
UNEXPECTED = Answer(
    500, SERVER, "internal_error", "Something went wrong in the server. The log names this request's id."
)


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of an error's answer."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorDocument(msgspec.Struct, frozen=True):
    """An error's answer, plain or as an event of a stream."""

    error: ErrorBody


def answer_of(error: Exception) -> Answer:
    """How this error is answered."""
    if isinstance(error, errors.EngineFaultError):
        return FAULT_ANSWERS[error.code]
    if isinstance(error, HTTPException):
        return HTTP_ANSWERS.get(error.status_code, BAD_REQUEST if error.status_code < 500 else UNEXPECTED)
    return next((ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS), UNEXPECTED)


def document_of(error: Exception) -> ErrorDocument:
    """The body of the answer."""
    answer = answer_of(error)
    param = error.param if isinstance(error, errors.RequestError) else None
    return ErrorDocument(ErrorBody(answer.message or str(error), answer.type, param, answer.code))


def handle_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of every route."""
    answer = answer_of(error)
    log_unexpected(error, request_id_of(request.scope))
    headers = {}
    retry_after = error.retry_after_seconds if isinstance(error, errors.QueueFullError) else answer.retry_after_seconds
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if answer.status == 401:
        headers["www-authenticate"] = "Bearer"
    if answer.status == 405:
        headers["allow"] = _allowed_methods(request)
    return Response(
        content=msgspec.json.encode(document_of(error)),
        status_code=answer.status,
        media_type="application/json",
        headers=headers,
    )


def _allowed_methods(request: Request[Any, Any, Any]) -> str:
    """The methods of the route that the request meant, which a 405 must list (RFC 9110, 15.5.6)."""
    path = request.scope["path"]
    routes = [route for route in request.app.routes if isinstance(route, HTTPRoute)]
    same = [route for route in routes if route.path == path]
    below = [route for route in routes if "{" in route.path and path.startswith(route.path.partition("{")[0])]
    return ", ".join(sorted({method for route in same or below for method in route.methods}))


def log_unexpected(error: Exception, request_id: str) -> None:
    """Write a bug of ours to the log, with its stack; expected errors are counted, not logged."""
    if answer_of(error) is UNEXPECTED:
        logger.error("request %s failed unexpectedly", request_id, exc_info=error)
