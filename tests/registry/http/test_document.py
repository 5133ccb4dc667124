"""docs/rest.md is what the OpenAPI document says."""

from __future__ import annotations

from tests.registry.documented_rest import PAGE, document, render


def test_the_page_is_made_from_the_document() -> None:
    page = PAGE.read_text()
    assert render(page) == page, "run `python -m tests.registry.documented_rest`"


def test_every_parameter_and_field_that_comes_in_is_bounded() -> None:
    schema = document()
    loose = []

    def walk(place: str, value: dict[str, object]) -> None:
        options = value.get("oneOf") or value.get("anyOf") or [value]
        assert isinstance(options, list)
        for option in options:
            if "$ref" in option:
                name = option["$ref"].rpartition("/")[2]
                target = schema["components"]["schemas"][name]
                for field, kind in target.get("properties", {}).items():
                    walk(f"{place}.{field}", kind)
                continue
            bounds = option | {key: bound for key, bound in value.items() if key not in ("oneOf", "anyOf")}
            if (
                option.get("type") == "string"
                and not {"enum", "format", "const"} & set(bounds)
                and "maxLength" not in bounds
            ):
                loose.append(place)
            if option.get("type") in ("integer", "number") and not {"maximum", "exclusiveMaximum"} & set(bounds):
                loose.append(place)
            if option.get("type") == "array" and "maxItems" not in bounds:
                loose.append(place)

    for path, item in schema["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", []):
                walk(f"{method} {path} {parameter['name']}", parameter["schema"])
            for body in operation.get("requestBody", {}).get("content", {}).values():
                if "$ref" in body["schema"]:
                    walk(f"{method} {path} body", body["schema"])
    assert loose == []
