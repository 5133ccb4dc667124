"""Reads a request's body into its schema, and turns what is wrong with it into an error that names the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from registry.decoding import decode
from serving.errors import ClientGoneError, InvalidFieldError, MalformedBodyError

S = TypeVar("S", bound=msgspec.Struct)

_PLACE = re.compile(r" - at (?P<place>.+)$")
_PATH = re.compile(r"`\$\.?(?P<path>[^`]*)`")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")
_LONGEST_NAME = 64


async def read_body(request: Request[Any, Any, Any], schema: type[S]) -> S:
    """The body as a `schema`. Raises MalformedBodyError, InvalidFieldError, ClientGoneError."""
    try:
        body = await request.body()
    except InternalServerException as error:  # Litestar's word for a client that left while it sent
        raise ClientGoneError from error
    return decode_body(body, schema)


def decode_body(body: bytes, schema: type[S]) -> S:
    """Bytes as a `schema`. Raises MalformedBodyError or InvalidFieldError."""
    try:
        return decode(body, schema)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedBodyError("The body is not valid JSON.") from None


def _explained(problem: str) -> InvalidFieldError:
    """msgspec's message, which names types and bounds but no internals, with the field that it is about."""
    place = _PLACE.search(problem)
    what = problem[: place.start()] if place else problem
    path_match = _PATH.search(place["place"]) if place else None
    path = path_match["path"] if path_match else ""
    if field := _FIELD.search(what):
        name = field["field"][:_LONGEST_NAME]
        param = f"{path}.{name}" if path else name
        if "unknown" in what:
            return InvalidFieldError(f"`{param}` is not a field that this server knows.", param=param)
        return InvalidFieldError(f"`{param}` is required.", param=param)
    param = path or None
    where = f"`{param}`: " if param else ""
    return InvalidFieldError(f"{where}{what[:1].lower()}{what[1:]}.", param=param)
