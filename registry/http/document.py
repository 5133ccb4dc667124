"""The OpenAPI document of the REST API, with our errors in the place of the framework's."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from registry.adapter_files import FILES_LIMIT
from registry.http.controllers.aliases import Selector
from registry.names import SHA256_DIGITS
from registry.publish import MESSAGE_CHARACTERS

ERROR = "Error"
ERROR_SCHEMA = {
    "title": ERROR,
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "What went wrong. Further fields depend on the code.",
            "required": ["code", "message", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "Stable, for programs."},
                "message": {"type": "string", "description": "For people: what happened, and what to do next."},
                "request_id": {"type": "string", "description": "Also in the header `x-request-id`, and in the log."},
            },
            "additionalProperties": True,
        }
    },
}
ERROR_ANSWER = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ERROR}"}}},
}


UPLOAD_PATH = "/registry/v1/adapters/{tenant}/{name}/versions"
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "maxItems": FILES_LIMIT,
                        "description": "The adapter's files, each a part with its file name.",
                    },
                    "base_fingerprint": {
                        "type": "string",
                        "maxLength": SHA256_DIGITS,
                        "description": "The base of an adapter without loraplex.json.",
                    },
                    "visibility": {"$ref": "#/components/schemas/Visibility"},
                    "message": {"type": "string", "maxLength": MESSAGE_CHARACTERS, "description": "A note."},
                },
            }
        }
    },
}


SELECTOR = {
    "description": "A number (also as text), an alias or a digest.",
    **msgspec.json.schema(Selector | None),
}
"""Litestar leaves out the bounds of what may be of several types."""
SELECTED_IN = ("Promotion", "NewCanary")


class DocumentPlugin(JsonRenderPlugin):
    """Serves the document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        return super().render(request, describe(openapi_schema))


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Litestar's document, completed in place; doing it again changes nothing."""
    document["components"]["schemas"][ERROR] = ERROR_SCHEMA
    for name in SELECTED_IN:
        document["components"]["schemas"][name]["properties"]["version"] = SELECTOR
    document["paths"][UPLOAD_PATH]["post"]["requestBody"] = UPLOAD_BODY
    for item in document["paths"].values():
        for operation in item.values():
            answers = operation["responses"]
            if answers.get("400", {}).get("description", "").startswith("Bad request"):
                del answers["400"]
            for status, answer in answers.items():
                if status.isdigit() and status >= "400":
                    answer["content"] = ERROR_ANSWER["content"]
            answers["default"] = ERROR_ANSWER
    return document
