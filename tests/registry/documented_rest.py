"""Writes docs/rest.md from the OpenAPI document.

    python -m tests.registry.documented_rest

What stands before the mark is written by people; everything after it is made anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import registry
from registry.error_documents import code_of, known_errors
from registry.errors import RegistryError
from registry.http.document import ERROR, describe
from registry.http.errors import status_of
from registry.http.rest import ROOT, create_rest_app
from registry.http.service import RegistryService
from registry.http.settings import HttpSettings

PAGE = Path(__file__).parents[2] / "docs" / "rest.md"
MARK = "<!-- from here on made by `python -m tests.registry.documented_rest` -->\n"
METHODS = ("get", "post", "put", "patch", "delete")
BOUNDS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
}


def render(page: str) -> str:
    """The page with everything after the mark made anew."""
    return page.partition(MARK)[0] + MARK + "\n".join(_generated(document()))


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder, registry.open(folder) as reg:
        service = RegistryService(reg, HttpSettings())
        schema = describe(create_rest_app(service).openapi_schema.to_schema())
        service.close()
    return schema


def _generated(schema: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, item in schema["paths"].items():
        for method in METHODS:
            if method in item:
                by_tag.setdefault(item[method]["tags"][0], []).append((method, path, item[method]))
    yield "## Routes\n"
    for tag, operations in by_tag.items():
        yield f"### {tag[:1].upper()}{tag[1:]}\n"
        for method, path, operation in operations:
            yield from _operation(method, path.removeprefix(ROOT), operation, schema)
    yield "## Errors\n"
    yield "| code | status | when |"
    yield "|---|---|---|"
    kinds = [
        kind for kind in known_errors() if kind.__module__ == RegistryError.__module__ and kind is not RegistryError
    ]
    for kind in sorted(kinds, key=lambda kind: (status_of(kind), code_of(kind))):
        summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        yield f"| `{code_of(kind)}` | {status_of(kind)} | {summary} |"
    yield "\n## Values\n"
    for name, value in sorted(schema["components"]["schemas"].items(), key=lambda entry: _short(entry[0])):
        if name != ERROR:
            yield from _value(_short(name), value)


def _operation(method: str, path: str, operation: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"#### `{method.upper()} {path}`\n"
    yield operation["description"] + "\n"
    rows = [
        f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'])} | {_text(parameter)} |"
        for parameter in operation.get("parameters", [])
        if parameter["in"] != "path"
    ]
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        target = _resolved(body["schema"], schema)
        place = "form" if media_type.startswith("multipart") else "body"
        if "properties" not in target:
            rows.append(f"| | {place} | {_type(body['schema'])} | |")
        for field, value in target.get("properties", {}).items():
            must = "" if field not in target.get("required", []) else "Required. "
            rows.append(f"| `{field}` | {place} | {_type(value)} | {must}{_text(value)} |")
    if rows:
        yield "| name | in | type | |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    answers = []
    for status, answer in operation["responses"].items():
        if status == "default":
            continue
        content = next(iter(answer.get("content", {}).values()), {}).get("schema")
        shown = "" if content is None or status >= "400" else f" {_type(content)}"
        note = answer["description"] if status not in ("200", "201") or not shown else ""
        answers.append(f"{status}{shown}{': ' + note if note else ''}".rstrip("."))
    yield f"Answers {'; '.join(sorted(answers))}.\n"


def _value(name: str, value: dict[str, Any]) -> Iterator[str]:
    yield f'<a id="{name.lower()}"></a>`{name}`'
    if "enum" in value:
        yield ": " + ", ".join(f"`{each}`" for each in value["enum"]) + "\n"
        return
    yield ""
    for field, kind in value.get("properties", {}).items():
        text = _text(kind)
        yield f"- `{field}`: {_type(kind)}{'. ' + text if text else ''}"
    yield ""


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = _short(value["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower()})"
    options = value.get("oneOf") or value.get("anyOf")
    if options:
        text = " or ".join(_type(option) for option in options)
    elif value.get("type") == "array":
        text = f"list of {_type(value.get('items', {}))}"
    elif "enum" in value:
        text = " or ".join(f"`{each}`" for each in value["enum"])
    elif value.get("format") == "date-time":
        text = "time"
    elif value.get("format") == "binary":
        text = "bytes"
    elif isinstance(value.get("additionalProperties"), dict) and value["additionalProperties"]:
        text = f"object of {_type(value['additionalProperties'])}"
    else:
        kind = value.get("type", "any")
        text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    bounds = [
        wording.format(f"{value[bound]:g}" if value[bound] < 1e6 else f"{value[bound]:,.0f}")
        for bound, wording in BOUNDS.items()
        if bound in value
    ]
    return f"{text} ({', '.join(bounds)})" if bounds else text


def _number(value: float) -> str:
    return f"{value:g}" if value < 1_000_000 else f"{value:,.0f}"


def _text(value: dict[str, Any]) -> str:
    return " ".join(str(value.get("description", "")).split()).replace("|", "\\|")


def _resolved(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in value:
        found: dict[str, Any] = schema["components"]["schemas"][value["$ref"].rpartition("/")[2]]
        return found
    return value


def _short(name: str) -> str:
    """`Page_registry.version.Version_` is a page of versions."""
    if name.startswith("Page_"):
        return "PageOf" + name.strip("_").rpartition(".")[2]
    return name.rpartition(".")[2].strip("_")


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(render(PAGE.read_text()))


if __name__ == "__main__":
    main()
