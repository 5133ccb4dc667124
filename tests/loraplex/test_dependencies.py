"""docs/dependencies.md gives a reason for every dependency, and pyproject.toml has no other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TITLES = {"At run time": "dependencies", "Extra `demo`": "demo", "Extra `dev`": "dev"}


def packages(requirements: list[str]) -> list[str]:
    return sorted(re.split(r"[^A-Za-z0-9_-]", line, maxsplit=1)[0].replace("_", "-") for line in requirements)


def documented() -> dict[str, dict[str, str]]:
    found = {}
    for section in (ROOT / "docs" / "dependencies.md").read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)
        found[section.partition("\n")[0]] = {name.replace("_", "-"): reason for name, reason in rows}
    return found


def test_each_dependency_has_its_reason() -> None:
    declared = {"dependencies": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    reasons = documented()
    for title, key in TITLES.items():
        assert sorted(reasons[title]) == packages(declared[key]), title
        assert all(len(reason) > 10 for reason in reasons[title].values())
    assert set(declared) == set(TITLES.values())


def test_each_dependency_is_locked_with_hashes() -> None:
    locked = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-dev.lock").read_text()
    pinned = {match.lower().replace("_", "-") for match in re.findall(r"^([A-Za-z0-9_.-]+)==", locked, re.MULTILINE)}
    wanted = {
        *packages(PROJECT["dependencies"]),
        *packages(PROJECT["optional-dependencies"]["demo"]),
        *packages(PROJECT["optional-dependencies"]["dev"]),
    }
    assert wanted - pinned == {"torch"}
    for block in re.split(r"\n(?=[A-Za-z0-9])", locked):
        if "==" in block.partition("\n")[0]:
            assert "--hash=sha256:" in block, block.partition("\n")[0]


def test_the_torch_of_setup_is_in_the_declared_range() -> None:
    setup = (ROOT / "deploy" / "setup.sh").read_text()
    found = re.search(r'TORCH_VERSION="\$\{TORCH_VERSION:-(\d+)\.(\d+)\.\d+\}"', setup)
    assert found
    least = re.search(r"torch>=(\d+)\.(\d+)", " ".join(PROJECT["dependencies"]))
    assert least
    assert (int(found[1]), int(found[2])) >= (int(least[1]), int(least[2]))
