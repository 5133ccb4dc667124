"""What starting a command costs: help, completion and commands that ask over HTTP load no database and no server.

Each runs in a process of its own, which says in the end what of the heavy libraries it has loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loraplex.cli import COMMANDS
from registry.principal import OPERATOR
from registry.registry import Registry
from tests.registry.http.server import serving

HEAVY = (
    "torch",
    "transformers",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "numpy",
    "obstore",
    "litestar",
    "uvicorn",
    "jinja2",
    "prometheus_client",
    "matplotlib",
    "huggingface_hub",
)
SIGNING = "cryptography"
REGISTRY_COMMANDS = tuple(name for name, entry in COMMANDS.items() if entry.target.startswith("registry."))


def heavy_after(
    code: str, *, cwd: Path, names: tuple[str, ...] = (*HEAVY, SIGNING), shows: str = "", **environment: str
) -> list[str]:
    """Which libraries a process has loaded that ran this code, in whose output this text must stand."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([one for one in {names!r} if one in sys.modules]))"
    unset = {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=cwd, env=unset | environment
    )
    assert done.returncode == 0, done.stderr
    assert shows in done.stdout
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def running(*commands: list[str]) -> str:
    """Code that runs these command lines, each of which must succeed."""
    return (
        "from click.testing import CliRunner\nfrom loraplex.cli import main\n"
        f"for line in {commands!r}:\n"
        "    result = CliRunner().invoke(main, line)\n"
        "    assert result.exit_code == 0, (line, result.output)"
    )


def test_the_package_and_its_client_load_no_database(tmp_path: Path) -> None:
    code = "import registry, registry.client\nregistry.open('http://127.0.0.1:9').close()"
    assert heavy_after(code, cwd=tmp_path) == []


def test_the_help_of_every_registry_command_loads_no_database(tmp_path: Path) -> None:
    lines = [[name, "--help"] for name in REGISTRY_COMMANDS]
    assert len(lines) > 30
    assert heavy_after(running(*lines), cwd=tmp_path, names=HEAVY) == []


def test_the_help_of_every_command_loads_no_torch(tmp_path: Path) -> None:
    lines = [[name, "--help"] for name in COMMANDS]
    assert (
        heavy_after(running(*lines), cwd=tmp_path, names=("torch", "transformers", "bitsandbytes", "matplotlib")) == []
    )


def test_commands_over_http_load_no_database(
    reg_sqlite: Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(make_adapter(seed=1))
    with serving(reg_sqlite) as url:
        lines = [
            ["tenant", "create", "acme"],
            ["publish", folder, "acme/sql", "--alias", "prod"],
            ["ls"],
            ["ls", "acme/sql"],
            ["show", "acme/sql@prod"],
            ["diff", "acme/sql@1", "acme/sql@1"],
            ["lineage", "acme/sql@1"],
            ["alias", "ls", "acme/sql"],
            ["events"],
            ["tenant", "ls"],
            ["audit", "ls"],
            ["pull", "acme/sql@prod", str(tmp_path / "pulled")],
        ]
        placed = [[*line, "--registry", url, "--home", str(tmp_path)] for line in lines]
        assert heavy_after(running(*placed), cwd=tmp_path) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("loraplex rollb", "rollback"),
        ("loraplex show acme/s", "acme/sql"),
        ("loraplex show acme/sql@p", "acme/sql@prod"),
    ],
)
def test_completion_loads_no_database(
    reg_sqlite: Registry, make_adapter: Callable[..., Path], tmp_path: Path, words: str, answer: str
) -> None:
    reg_sqlite.publish(make_adapter(seed=1), "acme/sql", principal=OPERATOR)
    reg_sqlite.promote("acme/sql@1", "prod", principal=OPERATOR)
    code = (
        "from contextlib import suppress\nfrom loraplex.cli import main\n"
        "with suppress(SystemExit):\n    main(prog_name='loraplex')"
    )
    with serving(reg_sqlite) as url:
        typed = {"_LORAPLEX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        found = heavy_after(
            code, cwd=tmp_path, LORAPLEX_REGISTRY=url, LORAPLEX_HOME=str(tmp_path), shows=answer, **typed
        )
    assert found == []
