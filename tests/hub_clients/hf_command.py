"""The `hf` command of a release, as a process, with nothing set but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.hub_clients.clients import HubClient, client_environment
from tests.hub_clients.registry_server import RunningRegistry

FEATURE = "hf: auth whoami, repos, upload, download, tags, delete"
SECONDS = 120


class Command:
    """`hf` of one client. Each call is a process."""

    def __init__(self, client: HubClient, environment: dict[str, str]) -> None:
        self._client = client
        self._environment = environment

    def ok(self, *args: str | Path) -> str:
        """Run it; it must succeed. Its output."""
        run = self._run(*args)
        assert run.returncode == 0, f"hf {args}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def fails(self, *args: str | Path) -> None:
        """Run it; it must say that it failed."""
        run = self._run(*args)
        assert run.returncode != 0, f"hf {args} went well\n{run.stdout}\n{run.stderr}"

    def _run(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(self._client.hf), *map(str, args)]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )


def use_command(server: RunningRegistry, client: HubClient, adapter: Path, work: Path) -> None:
    """What somebody does at a shell. Raises AssertionError with the command that went wrong."""
    is_old = client.hub.startswith("0.")
    hf = Command(client, client_environment(work, server.url, server.tokens["publisher"]))
    repos = "repo" if is_old else "repos"
    name = f"acme/command-{client.name}"
    assert "acme" in hf.ok("auth", "whoami")
    hf.ok(repos, "create", name, "--private")
    hf.fails(repos, "create", name)
    hf.ok("upload", name, adapter)
    hf.ok("upload", name, adapter / "adapter_config.json", "copies/config.json")
    hf.ok(repos, "tag", "create", name, "released")
    hf.ok("download", name, "--revision", "v1", "--local-dir", work / "found")
    for path in adapter.iterdir():
        assert (work / "found" / path.name).read_bytes() == path.read_bytes(), path.name
    hf.ok("download", name, "copies/config.json", "--revision", "released", "--local-dir", work / "one")
    assert json.loads((work / "one/copies/config.json").read_text())["peft_type"] == "LORA"
    hf.fails("download", name, "--revision", "nowhere")
    hf.fails("download", "umbrella/secret")
    if is_old:
        hf.ok("repo-files", name, "delete", "copies/config.json")
        return
    hf.ok("repos", "delete-files", name, "copies/config.json")
    hf.ok("repos", "branch", "create", name, "side")
    admin = Command(client, client_environment(work, server.url, server.tokens["admin"]))
    admin.ok("repos", "delete", name, "--yes")
    hf.fails("download", name, "--local-dir", work / "gone")
