"""The key by which a canary keeps a user on one side: `user` of the body, else the header `x-request-key`."""

from __future__ import annotations

from serving.api.schemas import SamplingFields
from serving.errors import InvalidFieldError

REQUEST_KEY_HEADER = "x-request-key"
KEY_CHARACTERS = 256


def request_key_of(header: str | None, fields: SamplingFields) -> str | None:
    """The key of this request. Raises InvalidFieldError for a header that is empty or too long."""
    if header is not None and not 1 <= len(header) <= KEY_CHARACTERS:
        message = f"The header {REQUEST_KEY_HEADER} has 1 to {KEY_CHARACTERS} characters."
        raise InvalidFieldError(message, param=REQUEST_KEY_HEADER)
    return header if fields.user is None else fields.user
