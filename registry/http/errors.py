"""Errors to HTTP: the only place of the REST API that knows statuses, and the one handler of all its routes.

An error is answered by `{"error": {"code", "message", "request_id", ...}}` with the error's own fields
(`registry/error_documents.py`). Only texts that were written for callers get out; whatever else went wrong is in the
log under the request's id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.routes import HTTPRoute

from registry import errors
from registry.error_documents import UNKNOWN_CODE, document_of
from registry.http.request_id import request_id_of

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5
CLIENT_GONE = 499

STATUSES: Mapping[type[errors.RegistryError], int] = {
    errors.InvalidNameError: 400,
    errors.InvalidValueError: 400,
    errors.NotFoundError: 404,
    errors.AuthenticationError: 401,
    errors.PermissionDeniedError: 403,
    errors.RejectedAdapterError: 422,
    errors.InvalidBaseError: 422,
    errors.UploadMismatchError: 400,
    errors.QuotaExceededError: 413,
    errors.ConflictError: 409,
    errors.AliasMovedError: 412,
    errors.ArchiveError: 400,
    errors.BusyError: 429,
    errors.UpstreamError: 502,
    errors.StorageError: 503,
    errors.IntegrityError: 500,
}
"""By class; an error whose class is not here is answered as its nearest parent."""

HTTP_ANSWERS: Mapping[int, tuple[str, str]] = {
    404: ("unknown_route", "There is no such route. `/registry/openapi.json` lists them."),
    405: ("method_not_allowed", "This route does not know this method."),
    413: ("body_too_large", "The body is larger than this route accepts."),
}
"""What the web framework itself refuses."""

BAD_REQUEST = ("bad_request", "The request cannot be read.")
UNEXPECTED = (UNKNOWN_CODE, "Something went wrong in the registry. Its log names this request's id.")
_PLACE = re.compile(r"`\$\.?(?P<path>[^`]*)`")
_MISSING = re.compile(r"Missing required \w+ parameter '(?P<name>[a-z_-]{1,40})'")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")


def handle_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of every route."""
    request_id = request_id_of(request.scope)
    status, document = answer_of(error)
    if status >= 500:
        is_ours = isinstance(error, errors.RegistryError)
        logger.error("request %s failed: %s", request_id, error, exc_info=None if is_ours else error)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(RETRY_SECONDS)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 405:
        headers["allow"] = _allowed_methods(request)
    return Response(
        content=msgspec.json.encode({"error": document | {"request_id": request_id}}),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


def answer_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the document that an error is answered with."""
    if isinstance(error, ValidationException):
        error = _explained(error)
    if isinstance(error, errors.RegistryError):
        return status_of(type(error)), document_of(error)
    if isinstance(error, HTTPException) and error.status_code < 500:
        code, message = HTTP_ANSWERS.get(error.status_code, BAD_REQUEST)
        return (error.status_code if error.status_code in HTTP_ANSWERS else 400), {"code": code, "message": message}
    return 500, {"code": UNEXPECTED[0], "message": UNEXPECTED[1]}


def status_of(kind: type[errors.RegistryError]) -> int:
    """The status of an error's class."""
    return next((STATUSES[parent] for parent in kind.__mro__ if parent in STATUSES), 500)


def _explained(error: ValidationException) -> errors.InvalidValueError:
    """What is wrong with a parameter or a field of the body: types and bounds, no internals."""
    extra = error.extra if isinstance(error.extra, list) else []
    first: Mapping[str, Any] = extra[0] if extra and isinstance(extra[0], dict) else {}
    text = str(first.get("message") or "it is not what this route takes")
    missing = _MISSING.match(error.detail)
    if missing:
        return errors.InvalidValueError(missing["name"], "it is required")
    place = _PLACE.search(text)
    path = place["path"] if place else ""
    if place:
        text = text[: place.start()].removesuffix(" - at ").strip()
    if named := _FIELD.search(text):
        path = f"{path}.{named['field'][:64]}" if path else named["field"][:64]
    key = str(first.get("key") or "")
    field = path or (key if key and key != "data" else "body")
    return errors.InvalidValueError(field[:200], text[:1].lower() + text[1:])


def _allowed_methods(request: Request[Any, Any, Any]) -> str:
    """The methods of the route that the request meant, which a 405 must list (RFC 9110, 15.5.6)."""
    parts = request.scope["path"].strip("/").split("/")
    methods = set()
    for route in request.app.routes:
        if isinstance(route, HTTPRoute):
            known = route.path.strip("/").split("/")
            same = zip(known, parts, strict=False)
            if len(known) == len(parts) and all(part.startswith("{") or part == own for part, own in same):
                methods |= route.methods
    return ", ".join(sorted(methods))
