"""The `hf` command of a release, as a process, with nothing set but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.hub_clients.clients import HubClient

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


def use_command(
    client: HubClient, tenant: str, environments: Mapping[str, dict[str, str]], adapter: Path, work: Path
) -> None:
    """What somebody does at a shell, as a publisher and an admin of the tenant.

    Raises AssertionError with the command that went wrong.
    """
    is_old = client.hub.startswith("0.")
    hf, admin = Command(client, environments["publisher"]), Command(client, environments["admin"])
    repos = "repo" if is_old else "repos"
    name = f"{tenant}/command"
    assert tenant in hf.ok("auth", "whoami")
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
        hf.ok("repo-files", "delete", name, "copies/config.json")
        return
    hf.ok("repos", "delete-files", name, "copies/config.json")
    hf.ok("repos", "branch", "create", name, "side")
    hf.fails("repos", "delete", name, "--yes")
    admin.ok("repos", "delete", name, "--yes")
    hf.fails("download", name, "--local-dir", work / "gone")
