"""What the tests of the REST API ask with, and how they read answers."""

from __future__ import annotations

from pathlib import Path

import httpx

SECRET = "operator-" + "s" * 32
V1 = "/registry/v1"
SQL = f"{V1}/adapters/acme/sql"
WEIGHTS = "adapter_model.safetensors"


def parts_of(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]


def code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    return str(error["code"])
