"""docs/serving.md says what the code does: routes, fields, errors and metrics are compared, both ways."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from litestar.routes import HTTPRoute
from prometheus_client.parser import text_string_to_metric_families

import registry
from serving.api import errors
from serving.api.schemas import ChatRequest, CompletionRequest
from serving.app import create_app, create_service
from serving.settings import ServingSettings
from tests.serving.conftest import Stocked
from tests.serving.server import RunningServer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without code marks."""
    section = re.split(r"\n#+ ", PAGE.split(f"{heading}\n", 1)[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_routes(tmp_path: Path) -> None:
    with registry.open(tmp_path / "registry") as reg:
        app = create_app(create_service(ServingSettings(home=tmp_path, registry=""), reg))
        found = {
            (method, route.path.replace(":path", ""))
            for route in app.routes
            if isinstance(route, HTTPRoute)
            for method in route.methods - {"OPTIONS"}
        }
    assert {(method, path) for method, path, *_ in rows("## Routes")} == found


@pytest.mark.parametrize(
    ("heading", "schema"),
    [("### POST /v1/chat/completions", ChatRequest), ("### POST /v1/completions", CompletionRequest)],
)
def test_fields(heading: str, schema: type[msgspec.Struct]) -> None:
    documented = [row[0] for row in rows(heading)]
    assert sorted(documented) == sorted(field.encode_name for field in msgspec.structs.fields(schema))


def test_errors() -> None:
    answers = [
        *errors.ANSWERS.values(),
        *errors.FAULT_ANSWERS.values(),
        *errors.HTTP_ANSWERS.values(),
        errors.BAD_REQUEST,
        errors.UNEXPECTED,
    ]
    documented = {(int(status), code) for status, code, _ in rows("## Errors")}
    assert documented == {(answer.status, answer.code) for answer in answers}


def test_metrics(server: RunningServer, stocked: Stocked) -> None:
    server.chat("!say a", model="acme/sql", response_format={"type": "json_object"})
    operator = registry.Principal.operator()
    with registry.open(stocked.home / "registry") as reg:
        reg.start_canary("acme/sql@2", "prod", permille=1, principal=operator)
        server.chat("!say a", model="acme/sql@prod")
    server.client.get("/v1/models", headers={"host": "evil.example"})
    server.client.put("/registry/v1/adapters/acme/sql/aliases/prod", json={"version": "prod"})
    server.client.post("/registry/v1/adapters/acme/sql/versions", files={"file": ("code.py", b"")})
    response = server.client.get("/metrics")
    with registry.open(stocked.home / "registry") as reg:
        reg.stop_canary("acme/sql", "prod", principal=operator)
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(response.text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels)
    documented = {name: (kind, set(filter(None, labels.split(", ")))) for name, kind, labels, _ in rows("## Metrics")}
    assert documented == found
