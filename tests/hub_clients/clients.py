"""The Hub clients that are tested: one for each environment that deploy/hub_clients.sh makes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "hub_clients"
ENVIRONMENTS = ROOT / ".venv-clients"


@dataclass(frozen=True)
class HubClient:
    """A release of huggingface_hub, with a release of hf_xet or without it, in an environment of its own."""

    name: str
    hub: str
    xet: str | None

    @property
    def folder(self) -> Path:
        """The environment."""
        folder = ENVIRONMENTS / self.name
        if not (folder / "requirements.txt").is_file():
            pytest.fail(f"{folder} is missing: make it with deploy/hub_clients.sh (`make test` does)", pytrace=False)
        return folder

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def hf(self) -> Path:
        """Its `hf` command."""
        return self.folder / "bin" / "hf"


def all_clients() -> list[HubClient]:
    """Every client, by release; those without hf_xet first."""
    found: dict[str, HubClient] = {}
    for path in sorted(REQUIREMENTS.glob("*.in")):
        releases = dict(re.findall(r"^([a-z_-]+)==([0-9.]+)$", path.read_text(), re.MULTILINE))
        plain = re.sub(r"-xet-.*", "-plain", path.stem)
        found[plain] = HubClient(plain, releases["huggingface_hub"], None)
        found[path.stem] = HubClient(path.stem, releases["huggingface_hub"], releases["hf-xet"])
    return sorted(found.values(), key=lambda client: (client.hub, client.xet or ""))


CLIENTS = all_clients()


def client_environment(home: Path, url: str, token: str) -> dict[str, str]:
    """The environment variables of a client: its own home, our registry, and nothing of the developer's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    return kept | {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
