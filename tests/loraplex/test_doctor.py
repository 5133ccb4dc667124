"""The doctor finds what is wrong, changes nothing, and always says what to do."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from basemodel.kernels import build, library
from loraplex import doctor
from loraplex.cli import main
from registry.base import BaseRecord
from registry.opening import open_registry
from registry.page import Page
from registry.version import AdapterSummary
from tests.registry.http.server import serving

NAMES = [
    "python", "torch", "cpu", "cuda", "bitsandbytes", "kernels", "memory", "settings", "home", "disk", "registry",
    "embedded base", "port",
]  # fmt: skip


def test_json_has_every_check_and_advice_for_each_that_is_not_ok(loraplex_home: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    checks = json.loads(result.output)
    assert [check["name"] for check in checks] == NAMES
    assert all(check["advice"] for check in checks if check["status"] != "ok")
    assert {check["name"]: check["status"] for check in checks}["bitsandbytes"] == "ok"
    assert result.exit_code == int(any(check["status"] == "failed" for check in checks))
    assert list(loraplex_home.iterdir()) == []


def test_text_output_names_each_check(loraplex_home: Path) -> None:
    output = CliRunner().invoke(main, ["doctor"]).output
    assert all(name in output for name in NAMES)


def test_a_variable_that_nothing_reads_is_a_warning(loraplex_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> dict[str, str]:
        checks = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
        return next(check for check in checks if check["name"] == "settings")

    for name in ("LORAPLEX_SERVE_PORT", "LORAPLEX_DOCTOR_HOME", "LORAPLEX_REGISTRY_SERVE_GRACE", "LORAPLEX_TORCH"):
        monkeypatch.setenv(name, "")
    assert found()["status"] == "ok"
    monkeypatch.setenv("LORAPLEX_SERVE_PROT", "9000")
    assert found()["status"] == "warning"
    assert found()["detail"] == "LORAPLEX_SERVE_PROT: no command reads it"
    assert found()["advice"].startswith("Did you mean LORAPLEX_SERVE_PORT? ")


def test_kernels_that_are_not_built_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "has_cpu_kernels", lambda: False)
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(sys, "executable", "/a folder/python")
    check = doctor.check_kernels()
    assert check.status == "warning"
    told = (check.advice or "").partition("then run: ")
    assert shlex.split(told[2]) == ["/a folder/python", "-P", "-m", "basemodel.kernels.build"]


def test_a_taken_port_is_a_warning(loraplex_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check = doctor.check_port("127.0.0.1", taken.getsockname()[1])
    assert check.status == "warning"
    assert check.advice is not None
    assert "--port" in check.advice


def test_a_home_that_is_a_file_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "home"
    file.write_text("")
    check = doctor.check_home(file)
    assert check.status == "failed"
    assert check.advice is not None


def test_a_home_that_does_not_exist_yet_is_not_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    assert doctor.check_home(home).status == "ok"
    assert not (tmp_path / "a").exists()


def test_a_missing_torch_is_reported_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.check_torch().status == "failed"
    assert doctor.check_cuda().status == "warning"
    assert doctor.check_bitsandbytes().status == "failed"


def test_a_registry_that_is_no_database_has_failed(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"not a database" * 1000)
    check = doctor.check_registry(tmp_path, lambda: open_registry(tmp_path))
    assert check.status == "failed"
    assert check.advice is not None


def registry_check(**environment: str) -> dict[str, str]:
    output = CliRunner().invoke(main, ["doctor", "--json"], env=environment).stdout
    found: dict[str, str] = next(check for check in json.loads(output) if check["name"] == "registry")
    return found


def test_the_registry_that_the_environment_names_is_looked_at(loraplex_home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with open_registry(elsewhere) as reg:
        reg.create_tenant("acme")
        with serving(reg, operator_secret="operator-" + "s" * 32) as url:
            secret = "operator-" + "s" * 32
            over_http = registry_check(LORAPLEX_REGISTRY=url, LORAPLEX_TOKEN=secret)
            without_token = registry_check(LORAPLEX_REGISTRY=url)
    assert registry_check(LORAPLEX_REGISTRY=str(elsewhere))["detail"] == f"{elsewhere}: 0 adapters over 0 bases"
    assert (over_http["status"], over_http["detail"]) == ("ok", f"{url}: 0 adapters over 0 bases")
    assert without_token["status"] == "failed"
    assert "--token" in without_token["advice"]


def test_a_registry_that_nobody_answers_for_has_failed(loraplex_home: Path) -> None:
    check = registry_check(LORAPLEX_REGISTRY="http://127.0.0.1:9")
    assert check["status"] == "failed"
    assert "LORAPLEX_REGISTRY" in check["advice"]


def test_no_password_is_shown() -> None:
    class Empty:
        def __enter__(self) -> Empty:
            return self

        def __exit__(self, *reason: object) -> None: ...

        def page_adapters(self, *arguments: object, **named: object) -> Page[AdapterSummary]:
            return Page((), None)

        def bases(self) -> list[BaseRecord]:
            return []

    address = "postgresql://loraplex:secret@database/registry?password=secret"
    check = doctor.check_registry(address, Empty)  # type: ignore[arg-type]
    assert check.detail == "postgresql://database/registry: 0 adapters over 0 bases"
