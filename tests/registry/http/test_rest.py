"""The REST API by plain HTTP: who gets in, what is refused, uploads, ranges, and answers that leak nothing."""

from __future__ import annotations

import logging
import re
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute
from prometheus_client.parser import text_string_to_metric_families

import registry
from registry import errors
from registry.error_documents import STORAGE_MESSAGE, code_of, document_of, error_from, known_errors
from registry.http.errors import STATUSES, status_of
from registry.http.rest import create_rest_app
from registry.http.service import RegistryService
from registry.http.settings import HttpSettings
from registry.principal import OPERATOR
from registry.registry import Registry
from tests.registry.http.answers import SECRET, SQL, V1, WEIGHTS, code
from tests.registry.http.server import serving

OPEN = {"/livez", "/readyz"}


def routes(reg: Registry) -> list[tuple[str, str]]:
    service = RegistryService(reg, HttpSettings(operator_secret=SECRET))
    app = create_rest_app(service)
    service.close()
    return [
        (method, route.path)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method in sorted(route.methods - {"OPTIONS"})
    ]


def test_every_route_is_closed_but_the_probes_and_the_document(reg_sqlite: Registry, client: httpx.Client) -> None:
    walked = routes(reg_sqlite)
    assert len(walked) > 25
    for method, path in walked:
        url = re.sub(r"\{[a-z_]+:[a-z]+\}", "x", path)
        response = client.request(method, url, headers={"authorization": ""})
        if path in OPEN or path.startswith("/registry/openapi.json"):
            assert response.status_code in (200, 404), path
        else:
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert code(response) == "missing_token"
        wrong = client.request(method, url, headers={"authorization": "Bearer lpx_wrong"})
        assert (wrong.status_code == 401) == (response.status_code == 401), path


def test_a_readers_token_changes_nothing(reg_sqlite: Registry, client: httpx.Client, version: registry.Version) -> None:
    secret = reg_sqlite.create_token("acme", "reader").secret
    reg_sqlite.promote("acme/sql@1", "prod", principal=OPERATOR)
    before = reg_sqlite.list_adapters(OPERATOR), reg_sqlite.list_tenants()
    parts = {"tenant": "acme", "name": "sql", "alias": "prod", "version": "1", "file": WEIGHTS}
    for method, path in routes(reg_sqlite):
        if method == "GET" or not path.startswith(V1):
            continue
        url = re.sub(r"\{([a-z_]+):[a-z]+\}", lambda found: parts.get(found.group(1), "x"), path)
        for body in ({"json": {}}, {"json": {"version": "1", "name": "new", "role": "admin"}}):
            response = client.request(method, url, headers={"authorization": f"Bearer {secret}"}, **body)
            assert response.status_code in (400, 403, 404, 422), (method, path, response.text)
    assert (reg_sqlite.list_adapters(OPERATOR), reg_sqlite.list_tenants()) == before


def test_an_open_registry_answers_this_machine_only(reg_sqlite: Registry) -> None:
    with serving(reg_sqlite) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get(f"{V1}/whoami").json()["is_open"] is True
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            for path in (f"{V1}/whoami", f"{V1}/tenants", "/metrics", "/api/whoami-v2"):
                assert client.get(path, headers=headers).status_code == 403, path
        made = client.post(f"{V1}/tenants", json={"name": "acme"})
        assert (made.status_code, made.json()["name"]) == (201, "acme")


def test_a_token_that_is_revoked_here_is_over_at_once(reg_sqlite: Registry) -> None:
    reg_sqlite.create_tenant("acme")
    with (
        serving(reg_sqlite, operator_secret=SECRET, token_cache_seconds=600.0) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        operator = {"authorization": f"Bearer {SECRET}"}
        made = client.post(f"{V1}/tenants/acme/tokens", json={"role": "reader"}, headers=operator).json()
        reader = {"authorization": f"Bearer {made['secret']}"}
        assert client.get(f"{V1}/whoami", headers=reader).json()["tenant"] == "acme"
        assert client.delete(f"{V1}/tokens/{made['token_id']}", headers=operator).status_code == 200
        assert client.get(f"{V1}/whoami", headers=reader).status_code == 401


EVALUATION = {"ref": "acme/sql@1", "name": "golden", "metrics": {"accuracy": 1}}


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", f"{SQL}/aliases/prod", {"version": "1", "force": True}, "force"),
        ("PUT", f"{SQL}/aliases/prod", {"version": 0}, "version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": 10**9}, "version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": 1.5}, "version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": True}, "version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": "x" * 300}, "version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": "1", "evidence": "x" * 10_001}, "evidence"),
        ("PUT", f"{SQL}/aliases/prod", {"version": "1", "expected_version": 0}, "expected_version"),
        ("PUT", f"{SQL}/aliases/prod", {"version": "1", "expected_version": 10**12}, "expected_version"),
        ("PUT", f"{SQL}/aliases/{'x' * 41}", {"version": "1"}, "alias"),
        ("PUT", f"{SQL}/aliases/prod", {"version": "1", "expected_version": "1"}, "expected_version"),
        ("POST", f"{V1}/attestations/evaluations", EVALUATION | {"metrics": {"accuracy": "1"}}, "metrics[...]"),
        ("POST", f"{V1}/attestations/evaluations", EVALUATION | {"passed": "true"}, "passed"),
        ("POST", f"{V1}/attestations/evaluations", EVALUATION | {"passed": 1}, "passed"),
        ("PATCH", f"{V1}/tenants/acme/policy", {"require_signature": "false"}, "require_signature"),
        ("POST", f"{V1}/tenants", {"name": "x" * 41}, "name"),
        ("POST", f"{V1}/tenants", {}, "name"),
        ("POST", f"{V1}/tenants", [], "body"),
        ("POST", f"{V1}/tenants/acme/tokens", {"role": "king"}, "role"),
        ("POST", f"{V1}/tenants/acme/tokens", {"label": "x" * 201}, "label"),
        ("POST", f"{V1}/tenants/acme/tokens", {"expires_at": "soon"}, "expires_at"),
        ("POST", f"{V1}/tenants/acme/tokens", {"scope": ["a"] * 101}, "scope"),
        ("GET", f"{V1}/adapters?limit=0", None, "limit"),
        ("GET", f"{V1}/adapters?limit=1001", None, "limit"),
        ("GET", f"{V1}/adapters?limit=x", None, "limit"),
        ("GET", f"{V1}/adapters?cursor={'x' * 513}", None, "cursor"),
        ("GET", f"{V1}/adapters?cursor=!", None, "cursor"),
        ("GET", f"{V1}/adapters?search={'x' * 257}", None, "search"),
        ("GET", f"{V1}/adapters?page=2", None, "page"),
        ("GET", f"{V1}/resolve", None, "ref"),
    ],
)
def test_what_is_out_of_its_bounds_is_refused_by_name(
    shared: httpx.Client, method: str, path: str, body: Any, field: str
) -> None:
    response = shared.request(method, path, json=body)
    assert response.status_code == 400, response.text
    assert code(response) == "invalid_value"
    assert response.json()["error"]["field"] == field
    assert len(response.content) < 1000


def test_what_is_no_request(shared: httpx.Client) -> None:
    broken = shared.post(f"{V1}/tenants", content=b'{"name": "ac', headers={"content-type": "application/json"})
    assert (broken.status_code, code(broken)) == (400, "bad_request")
    large = shared.post(f"{V1}/tenants", content=b" " * (4 * 1024 * 1024 + 1))
    assert (large.status_code, code(large)) == (413, "body_too_large")
    absent = shared.get(f"{V1}/nothing")
    assert (absent.status_code, code(absent)) == (404, "unknown_route")
    method = shared.patch(f"{V1}/tenants")
    assert (method.status_code, code(method)) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(method.headers["allow"].split(", "))


def test_the_clients_request_id_comes_back(shared: httpx.Client) -> None:
    assert shared.get(f"{V1}/whoami", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert shared.get(f"{V1}/whoami", headers={"x-request-id": "<script>"}).headers["x-request-id"] != "<script>"


@pytest.mark.usefixtures("version")
def test_if_match(client: httpx.Client) -> None:
    url = f"{SQL}/aliases/prod"
    first = client.put(url, json={"version": "1"}, headers={"if-none-match": "*"})
    assert (first.status_code, first.headers["etag"]) == (200, '"1"')
    again = client.put(url, json={"version": "1"}, headers={"if-none-match": "*"})
    assert (again.status_code, code(again)) == (412, "alias_moved")
    assert client.get(url).headers["etag"] == '"1"'
    stale = client.put(url, json={"version": "1"}, headers={"if-match": '"7"'})
    assert (stale.status_code, stale.json()["error"]["actual"]) == (412, 1)
    assert client.put(url, json={"version": "1"}, headers={"if-match": '"1"'}).status_code == 200
    assert client.put(url, json={"version": "1"}, headers={"if-match": "*"}).status_code == 200
    for headers in ({"if-match": 'W/"1"'}, {"if-match": '"x"'}, {"if-none-match": '"1"'}, {"if-match": "9" * 30}):
        assert client.put(url, json={"version": "1"}, headers=headers).status_code == 400, headers
    both = client.put(url, json={"version": "1", "expected_version": 1}, headers={"if-match": '"1"'})
    assert (both.status_code, both.json()["error"]["field"]) == (400, "expected_version")


@pytest.mark.usefixtures("version")
def test_a_number_may_be_a_number(client: httpx.Client) -> None:
    url = f"{SQL}/aliases/prod"
    assert client.put(url, json={"version": 1}).json()["to_number"] == 1
    assert client.put(url, json={"version": "1"}).json()["to_number"] == 1
    absent = client.put(url, json={"version": 7})
    assert (absent.status_code, "7" in absent.json()["error"]["message"]) == (404, True)
    assert client.put(f"{url}/canary", json={"version": 7, "permille": 100}).status_code == 404
    for wrong in (1.5, True, [1], 0):
        said = client.put(url, json={"version": wrong}).json()["error"]["message"]
        assert "int" in said, "it says what to send"


@pytest.mark.usefixtures("version")
def test_deleting_an_alias(client: httpx.Client) -> None:
    url = f"{SQL}/aliases/prod"
    tag = client.put(url, json={"version": "1"}).headers["etag"]
    stale = client.delete(url, headers={"if-match": '"7"'})
    assert (stale.status_code, code(stale), stale.json()["error"]["actual"]) == (412, "alias_moved", 1)
    for wrong in ({"evidence": "x" * 1_001}, {"expected_version": "0"}, {"reason": "x"}):
        assert client.delete(url, params=wrong).status_code == 400, wrong
    both = client.delete(url, params={"expected_version": "1"}, headers={"if-match": tag})
    assert (both.status_code, both.json()["error"]["field"]) == (400, "expected_version")
    gone = client.delete(url, params={"evidence": "no longer sold"}, headers={"if-match": tag})
    assert gone.status_code == 200
    assert (gone.json()["kind"], gone.json()["to_number"], gone.json()["evidence"]) == (
        "delete",
        None,
        "no longer sold",
    )
    assert "etag" not in gone.headers, "what is not there has none"
    assert (client.get(url).status_code, client.delete(url).status_code) == (404, 404)
    assert [move["kind"] for move in client.get(f"{url}/history").json()] == ["delete", "promote"]
    assert client.put(url, json={"version": "1"}, headers={"if-match": '"2"'}).status_code == 412
    assert client.put(url, json={"version": "1"}, headers={"if-none-match": "*"}).headers["etag"] == '"3"'


def test_foreign_and_missing_are_the_same_bytes(
    client: httpx.Client, reg_sqlite: Registry, version: registry.Version
) -> None:
    reg_sqlite.promote("acme/sql@1", "prod", principal=OPERATOR)
    reg_sqlite.create_tenant("globex")
    stranger = {"authorization": f"Bearer {reg_sqlite.create_token('globex', 'admin').secret}", "x-request-id": "same"}
    assert version.number == 1
    for path in ("", "/versions", "/versions/1", "/versions/1/files", f"/versions/1/files/{WEIGHTS}", "/aliases"):
        hidden = client.get(f"{V1}/adapters/acme/sql{path}", headers=stranger)
        missing = client.get(f"{V1}/adapters/acme/abc{path}", headers=stranger)
        assert hidden.status_code == missing.status_code == 404
        assert hidden.content.replace(b"acme/sql", b"X") == missing.content.replace(b"acme/abc", b"X")
    for path in ("/aliases/prod", "/aliases/prod/rollback"):
        method = "PUT" if path.endswith("prod") else "POST"
        hidden = client.request(method, f"{V1}/adapters/acme/sql{path}", json={}, headers=stranger)
        missing = client.request(method, f"{V1}/adapters/acme/abc{path}", json={}, headers=stranger)
        assert hidden.status_code == missing.status_code == 404
        assert hidden.content.replace(b"acme/sql", b"X") == missing.content.replace(b"acme/abc", b"X")


def test_failures_tell_nothing_of_the_machine(
    client: httpx.Client, reg_sqlite: Registry, version: registry.Version, caplog: pytest.LogCaptureFixture
) -> None:
    entry = next(file for file in version.files if file.path == WEIGHTS)
    path = reg_sqlite.blobs.local_path(entry)
    assert path is not None
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        damaged = client.get(f"{SQL}/versions/1/files/{WEIGHTS}")
    assert (damaged.status_code, code(damaged)) == (500, "integrity")
    assert str(reg_sqlite.folder) not in damaged.text
    assert damaged.headers["x-request-id"] in caplog.text
    unknown = errors.StorageError(f"{reg_sqlite.folder} is full", path=reg_sqlite.folder)
    assert document_of(unknown) == {"code": "storage", "message": STORAGE_MESSAGE}


def test_metrics(client: httpx.Client, reg_sqlite: Registry, version: registry.Version) -> None:
    client.get(f"{SQL}/versions/1/files/{WEIGHTS}")
    client.put(f"{SQL}/aliases/prod", json={"version": "1"})
    client.get("/api/whoami-v2")
    text = client.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["loraplex_registry_requests_total", "rest", "2xx"] == 2
    assert samples["loraplex_registry_requests_total", "hub", "2xx"] == 1
    assert samples["loraplex_registry_sent_bytes_total", "rest"] > version.adapter_bytes
    assert samples["loraplex_registry_promotions_total", "promote"] == 1
    assert "acme" not in text
    reader = reg_sqlite.create_token("acme", "reader").secret
    assert client.get("/metrics", headers={"authorization": f"Bearer {reader}"}).status_code == 403


def test_the_document_is_open_and_describes_every_route(shared: httpx.Client) -> None:
    document = shared.get("/registry/openapi.json", headers={"authorization": ""}).json()
    assert document["openapi"] == "3.1.0"
    operations = [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict) and "responses" in operation
    ]
    assert len(operations) > 15
    for path, method, operation in operations:
        assert path.startswith(V1), path
        assert operation.get("description"), (method, path)
        assert operation["tags"], (method, path)


def test_every_error_has_a_status_and_comes_back_as_itself() -> None:
    for kind in known_errors():
        if kind.__module__ == "registry.errors" and kind is not errors.RegistryError:
            assert any(parent in STATUSES for parent in kind.__mro__), kind
            assert 400 <= status_of(kind) < 600
    moved = errors.AliasMovedError("acme/sql", "prod", expected=None, actual=3)
    back = error_from(document_of(moved))
    assert type(back) is errors.AliasMovedError
    assert (str(back), vars(back)) == (str(moved), vars(moved))
    refused = errors.BaseMismatchError(found="a", expected=("b",))
    again = error_from(document_of(refused))
    assert isinstance(again, errors.BaseMismatchError)
    assert vars(again) == vars(refused)
    assert error_from({"code": "of_a_newer_release", "message": "x"}) is None
    assert code_of(errors.InvalidValueError) == "invalid_value"
