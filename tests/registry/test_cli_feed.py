"""The commands about events, webhooks, mirrors and archives, through the real command and a real registry folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import registry
from loraplex.cli import main
from registry import Principal
from tests.registry.http.server import serving
from tests.registry.test_mirror import FakeHub
from tests.registry.web_peer import WebPeer

MakeAdapter = Callable[..., Path]
OPERATOR = Principal.operator()
SECRET = "operator-" + "s" * 32


class Shell:
    """Runs commands as a user with one registry would."""

    def __init__(self, home: Path, place: str, token: str | None = None) -> None:
        self.environment = {"LORAPLEX_HOME": str(home), "LORAPLEX_REGISTRY": place} | (
            {} if token is None else {"LORAPLEX_TOKEN": token}
        )

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], env=self.environment)

    def ok(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture(params=["folder", "http"])
def shell(request: pytest.FixtureRequest, reg_sqlite: registry.Registry, tmp_path: Path) -> Iterator[Shell]:
    """The same commands on a folder and on a registry over HTTP."""
    if request.param == "folder":
        yield Shell(tmp_path / "home", str(reg_sqlite.folder))
        return
    with serving(reg_sqlite, operator_secret=SECRET) as url:
        yield Shell(tmp_path / "home", url, SECRET)


@pytest.fixture
def published(reg_sqlite: registry.Registry, make_adapter: MakeAdapter) -> registry.Registry:
    """Two versions of acme/a; prod was promoted twice and rolled back."""
    for seed in (1, 2):
        reg_sqlite.publish(make_adapter(seed=seed), "acme/a", principal=OPERATOR)
        reg_sqlite.promote(f"acme/a@{seed}", "prod", principal=OPERATOR)
    reg_sqlite.rollback("acme/a", "prod", principal=OPERATOR)
    return reg_sqlite


def test_events(shell: Shell, published: registry.Registry) -> None:
    lines = shell.ok("events").splitlines()
    assert [line.split("  ", 2)[2] for line in lines[1:]] == [
        "version.published  acme/a@1  by operator",
        "alias.promoted  acme/a@prod: nowhere -> 1  by operator",
        "version.published  acme/a@2  by operator",
        "alias.promoted  acme/a@prod: 1 -> 2  by operator",
        "alias.rolled_back  acme/a@prod: 2 -> 1  by operator",
    ]
    found = [json.loads(line) for line in shell.ok("events", "--json", "--limit", 2).splitlines()]
    assert [event["id"] for event in found] == [event.id for event in published.events(OPERATOR, after=0).events]
    assert shell.ok("events", "--after", found[-1]["id"]) == ""
    assert len(shell.ok("events", "--kind", "alias.promoted").splitlines()) == 2
    assert shell.run("events", "--kind", "nonsense").exit_code == 2


def test_events_are_followed_until_interrupted(published: registry.Registry, make_adapter: MakeAdapter) -> None:
    environment = os.environ | {"LORAPLEX_REGISTRY": str(published.folder), "PYTHONUNBUFFERED": "1"}
    # Whoever runs the tests in the background ignores interrupts, and so would the command.
    heeding = "from signal import *; signal(SIGINT, default_int_handler); import loraplex.cli as c; c.main()"
    command = [sys.executable, "-c", heeding, "events", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        deadline, seed, found = time.monotonic() + 60, 10, ""
        while not found and time.monotonic() < deadline:  # it follows from when it has begun, which nobody is told
            published.publish(make_adapter(seed=seed), "acme/later", principal=OPERATOR)
            seed += 1
            time.sleep(0.3)
            found = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert json.loads(found)["adapter"] == "acme/later"


def test_webhooks(shell: Shell, published: registry.Registry) -> None:
    shown = shell.json("webhook", "allow")
    assert shown == {"allows_http": False, "hosts": [], "networks": []}
    assert "10.1.0.0/16" in shell.ok("webhook", "allow", "--network", "10.1.0.0/16", "--http", "--host", "hook.corp")
    text = shell.ok("webhook", "create", "http://10.1.2.3/hook", "--tenant", "acme", "--kind", "version.published")
    webhook_id = text.split()[1]
    secret = text.split("secret")[1].split()[0]
    assert secret.startswith("whsec_")
    listed = shell.ok("webhook", "ls", "--tenant", "acme")
    assert webhook_id in listed
    assert secret not in listed
    assert "no" in shell.ok("webhook", "deliveries", webhook_id).lower()
    assert shell.json("webhook", "test", webhook_id)["kind"] == "webhook.test"
    assert shell.json("webhook", "replay", webhook_id, "--after", 0)["queued"] == 2
    assert "version.published" in shell.ok("webhook", "deliveries", webhook_id)
    assert "removed" in shell.ok("webhook", "rm", webhook_id)
    refused = shell.run("webhook", "create", "https://127.0.0.1/", "--tenant", "acme")
    assert refused.exit_code == 1
    assert "public internet" in refused.output
    assert shell.json("webhook", "allow", "--nothing") == shown


def test_mirrors(shell: Shell, published: registry.Registry, make_adapter: MakeAdapter) -> None:
    with WebPeer().running() as peer:
        hub = FakeHub(peer)
        hub.push("org/x", make_adapter(seed=5))
        assert "acme/x@1 is now" in shell.ok("mirror", "add", "acme/x", "--from", f"{peer.url}/org/x")
        assert "nothing to pull in" in shell.ok("mirror", "sync")
        hub.push("org/x", make_adapter(seed=6))
        (done,) = shell.json("mirror", "sync")
        assert done["publication"]["version"]["number"] == 2
        assert f"{peer.url}/org/x" in shell.ok("mirror", "ls")
        assert "its versions stay" in shell.ok("mirror", "rm", "acme/x")
        assert "No mirrors" in shell.ok("mirror", "ls")
        assert shell.run("mirror", "through", "acme").exit_code == 2
        assert shell.json("mirror", "through", "acme", "--from", f"{peer.url}/org")["upstream"] == f"{peer.url}/org"
        assert shell.json("mirror", "through", "acme", "--off")["upstream"] is None


@pytest.mark.parametrize("kind", ["tar", "oci"])
def test_export_and_import(shell: Shell, published: registry.Registry, tmp_path: Path, kind: str) -> None:
    destination = tmp_path / ("all.tar.gz" if kind == "tar" else "layout")
    said = shell.ok("export", "acme/a", destination, "--all", "--format", kind)
    assert "2 versions of acme/a" in said
    again = shell.ok("import", destination).splitlines()
    assert [line.split("@")[0] for line in again] == ["Already there: acme/a"] * 2
    done = shell.json("import", destination, "--as", "globex/b", *(["--aliases"] if kind == "tar" else []))
    assert [version["is_new"] for version in done["versions"]] == [True, True]
    assert done["aliases"] == ({"prod": 1} if kind == "tar" else {})
    refused = shell.run("export", "acme/a", destination, "--format", kind)
    assert refused.exit_code == 1
    assert "there already" in refused.output


def test_an_oci_layout_has_no_aliases_to_import(
    reg_sqlite: registry.Registry, published: registry.Registry, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "home", str(reg_sqlite.folder))
    shell.ok("export", "acme/a", tmp_path / "layout", "--format", "oci")
    assert shell.run("import", tmp_path / "layout", "--aliases").exit_code == 2
