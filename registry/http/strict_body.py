"""JSON bodies are what they say: `"1"` is a text and no number, `1` is no text, and `"false"` is no truth value.

The framework reads a body into plain values and then converts these as kindly as parameters of a query, which can be
nothing but text. Here the body is decoded into the type that its route takes, strictly, before that.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import SerializationException, ValidationException

from registry.decoding import decode


class StrictRequest(Request[Any, Any, Any]):
    """A request of the REST API."""

    async def json(self) -> Any:
        """The body as its route's type. Raises SerializationException, ValidationException."""
        field = self.route_handler.parsed_data_field
        assert field is not None, "only a route with a body reads it"
        try:
            return decode(await self.body(), field.annotation)
        except msgspec.ValidationError as error:
            raise ValidationException(extra=[{"message": str(error), "key": "data"}]) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SerializationException(str(error)) from error
