"""The commands on a registry over HTTP, `loraplex registry serve` as a process, and shell completion."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import registry
from loraplex.cli import main
from registry.cli.progress import Bars
from registry.errors import InvalidValueError
from registry.http.settings import HttpSettings
from registry.principal import OPERATOR
from registry.registry import Registry
from registry.server import read_operator_secret, refuse_open_server
from tests.registry.adapter_folders import FINGERPRINT, OTHER_FINGERPRINT, base_document
from tests.registry.http.server import serving

SECRET = "operator-" + "s" * 32


@pytest.fixture
def url(reg_sqlite: Registry) -> Iterator[str]:
    with serving(reg_sqlite, operator_secret=SECRET, token_cache_seconds=0.0) as address:
        yield address


def run(*arguments: str, url: str, token: str | None = SECRET, home: Path) -> Result:
    env = {"LORAPLEX_HOME": str(home), "LORAPLEX_TOKEN": token, "LORAPLEX_REGISTRY": None}
    return CliRunner().invoke(main, [*arguments, "--registry", url], env=env)


def run_json(*arguments: str, **options: Any) -> Any:
    result = run(*arguments, "--json", **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_teams_day_over_http(url: str, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run_json("tenant", "create", "acme", url=url, home=home)["name"] == "acme"
    token = run_json("token", "create", "--tenant", "acme", "--role", "publisher", url=url, home=home)
    assert (token["tenant"], token["role"]) == ("acme", "publisher")
    publisher = {"url": url, "home": home, "token": token["secret"]}
    first = run_json("publish", str(make_adapter(seed=1)), "acme/sql", **publisher)
    assert (first["is_new"], first["version"]["number"]) == (True, 1)
    assert [adapter["adapter"] for adapter in run_json("ls", **publisher)] == ["acme/sql"]
    refused = run("promote", "acme/sql@1", "--alias", "prod", **publisher)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: You may not move an alias of 'acme/sql': your token has the role")
    assert run_json("promote", "acme/sql@1", "--alias", "prod", url=url, home=home)["to_number"] == 1
    moved = run("promote", "acme/sql@1", "--alias", "prod", "--expect", "none", url=url, home=home)
    assert (moved.exit_code, "points at version 1" in moved.stderr) == (1, True)
    shown = run("show", "acme/sql@prod", **publisher)
    assert "acme/sql@1" in shown.output
    pulled = run_json("pull", "acme/sql@prod", str(tmp_path / "copy"), **publisher)
    assert (Path(pulled["folder"]) / "adapter_config.json").is_file()
    assert not home.exists() or not (home / "registry").exists(), "nothing is made here"


def test_an_admin_makes_tokens_and_no_tenants(url: str, reg_sqlite: Registry, tmp_path: Path) -> None:
    reg_sqlite.create_tenant("acme")
    reg_sqlite.create_tenant("globex")
    admin = {"url": url, "home": tmp_path, "token": reg_sqlite.create_token("acme", "admin").secret}
    assert run_json("token", "create", "--tenant", "acme", "--role", "reader", **admin)["role"] == "reader"
    assert {token["tenant"] for token in run_json("token", "ls", **admin)} == {"acme"}
    for arguments in (("tenant", "create", "new"), ("token", "create", "--tenant", "globex", "--role", "reader")):
        result = run(*arguments, **admin)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: You may not")


@pytest.mark.parametrize("token", [None, "lpx_wrong"])
def test_without_a_good_token(url: str, tmp_path: Path, token: str | None) -> None:
    result = run("ls", url=url, home=tmp_path, token=token)
    assert result.exit_code == 1
    assert "token" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://", "http://a:b@host", "ftp://host", "http://h/?x=1"])
def test_addresses_that_lead_nowhere(tmp_path: Path, address: str) -> None:
    result = run("ls", url=address, home=tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert SECRET not in result.output


def complete(words: str, *, home: Path, **env: str) -> list[str]:
    """What bash would be offered after these words."""
    parts = words.split(" ")
    variables = {
        "_LORAPLEX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
        "LORAPLEX_HOME": str(home),
    }
    result = CliRunner().invoke(main, [], prog_name="loraplex", env=variables | env)
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_completion(url: str, reg_sqlite: Registry, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    for seed, name in enumerate(("acme/sql", "acme/sqlite", "globex/sql")):
        reg_sqlite.publish(make_adapter(seed=seed), name, principal=OPERATOR)
    reg_sqlite.promote("acme/sql@1", "prod", principal=OPERATOR)
    acme = reg_sqlite.create_token("acme", "reader").secret
    remote = {"home": tmp_path, "LORAPLEX_REGISTRY": url, "LORAPLEX_TOKEN": acme}
    assert {"publish", "pull", "promote"} <= set(complete("loraplex p", **remote))
    assert "create" in complete("loraplex tenant c", **remote)
    assert "--alias" in complete("loraplex promote --a", **remote)
    assert complete("loraplex show acme/s", **remote) == ["acme/sql", "acme/sqlite"]
    assert complete("loraplex show ", **remote) == ["acme/sql", "acme/sqlite"], "nobody else's"
    assert complete("loraplex show globex/", **remote) == []
    assert complete("loraplex pull acme/sql@", **remote) == ["acme/sql@prod", "acme/sql@1"]
    assert complete("loraplex pull acme/sql@p", **remote) == ["acme/sql@prod"]
    assert complete(f"loraplex show --registry {reg_sqlite.folder} globex/", home=tmp_path) == ["globex/sql"]
    for bad in ({"LORAPLEX_TOKEN": "lpx_wrong"}, {"LORAPLEX_REGISTRY": "http://127.0.0.1:9"}):
        assert complete("loraplex show acme/", **(remote | bad)) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_LORAPLEX_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True, timeout=60)


def test_progress_bars_end(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars(Console(stderr=True, force_terminal=True))
    for passed in (10, 60, 100):
        bars("weights\x1b[45m", passed, 100)
    assert not bars._progress.live.is_started, "the terminal is free when all files have passed"
    bars.close()
    shown = capsys.readouterr().err
    assert "weights" in shown
    assert "\x1b[45m" not in shown


class Served:
    """A `loraplex registry serve` process."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        script = "from loraplex.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, "registry", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )

    def wait_ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"Registry on (http://\S+) \((.+)\)\n", line)
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        return found.group(1)


def test_serve_alone(tmp_path: Path) -> None:
    """It answers on both faces, without torch; after the signal it finishes what is under way, and ends."""
    served = Served("--data", "data", "--log-level", "info", folder=tmp_path)
    address = served.wait_ready()
    with registry.open(address) as reg:
        reg.create_tenant("acme")
        secret = reg.create_token("acme", "publisher").secret
    boundary = {"content-type": "multipart/form-data; boundary=x"}

    def slow() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="message"\r\n\r\n'
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        yield b"late\r\n--x--\r\n"

    with httpx.Client(base_url=address, timeout=60, headers={"authorization": f"Bearer {secret}"}) as client:
        assert client.get("/livez").text == "ok"
        assert client.get("/readyz").text == "ready"
        assert client.get("/metrics").status_code == 403
        assert client.get("/api/whoami-v2").status_code == 200
        assert "libtorch" not in Path(f"/proc/{served.process.pid}/maps").read_text()
        response = client.post("/registry/v1/adapters/acme/sql/versions", content=slow(), headers=boundary)
    assert (response.status_code, response.json()["error"]["reason"]) == (422, "missing-file")
    _, errors = served.process.communicate(timeout=60)
    assert (served.process.returncode, "Traceback" in errors) == (0, False), errors
    assert secret not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/livez")


def test_an_open_registry_beyond_this_machine_is_refused(tmp_path: Path, reg_sqlite: Registry) -> None:
    result = CliRunner().invoke(main, ["registry", "serve", "--data", str(reg_sqlite.folder), "--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "without tokens" in result.stderr
    refuse_open_server(reg_sqlite, "127.0.0.1", HttpSettings())
    refuse_open_server(reg_sqlite, "0.0.0.0", HttpSettings(operator_secret=SECRET))
    reg_sqlite.create_tenant("acme")
    reg_sqlite.create_token("acme", "reader")
    refuse_open_server(reg_sqlite, "0.0.0.0", HttpSettings())


def test_a_file_is_no_registry_to_serve(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["registry", "serve", "--data", "~/file"], env={"HOME": str(tmp_path)})
    assert result.exit_code == 2
    assert f"Invalid value for '--data': Directory '{tmp_path / 'file'}' is a file" in result.stderr


def test_a_registry_over_http_is_not_served_again(url: str) -> None:
    result = CliRunner().invoke(main, ["registry", "serve", "--data", url])
    assert (result.exit_code, "Traceback" in result.stderr) == (1, False)
    assert f"`data` cannot be taken: {url} is a server already" in result.stderr


def test_the_operators_token_file(tmp_path: Path) -> None:
    for content in (b"short", b"\xff" * 40, b"two words " * 4, b"", SECRET.encode() + b"\nmore"):
        (tmp_path / "secret").write_bytes(content)
        with pytest.raises(InvalidValueError, match="operator-token-file"):
            read_operator_secret(tmp_path / "secret")
    with pytest.raises(InvalidValueError):
        read_operator_secret(tmp_path / "absent")
    (tmp_path / "secret").write_text(f" {SECRET}\n")
    assert read_operator_secret(tmp_path / "secret") == SECRET
    assert SECRET not in repr(HttpSettings(operator_secret=SECRET))


def test_a_trainers_home_has_its_bases_registered(url: str, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    """A publisher's own new base is not added, with a warning; the known one serves."""
    home = tmp_path / "home"
    (home / "bases" / "other-nf4").mkdir(parents=True)
    (home / "bases" / "other-nf4" / "base.json").write_text(json.dumps(base_document(OTHER_FINGERPRINT, "other")))
    run_json("tenant", "create", "acme", url=url, home=home)
    secret = run_json("token", "create", "--tenant", "acme", "--role", "publisher", url=url, home=home)["secret"]
    result = run("publish", str(make_adapter()), "acme/sql", url=url, home=home, token=secret)
    assert result.exit_code == 0, result.output
    assert "is left out: You may not register the base 'other'" in result.stderr
    with registry.open(url, token=SECRET) as reg:
        assert [base.fingerprint for base in reg.bases()] == [FINGERPRINT]
