"""Stock peft and transformers push to a real server and read from it, with no setting but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_clients.clients import ROOT, client_environment
from tests.hub_clients.registry_server import RunningRegistry

SECONDS = 240


@pytest.fixture(scope="module")
def run(hub_server: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    work = tmp_path_factory.mktemp("libraries")
    (work / "plan.json").write_text(json.dumps({"registry": str(hub_server.folder)}))
    environment = client_environment(work, hub_server.url, hub_server.new_tenant("acme")["publisher"])
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).parent / "libraries.py"), str(work)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("library", ["peft", "trainer"])
def test_library(run: subprocess.CompletedProcess[str], library: str) -> None:
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"feature"')]
    failures = {line["feature"]: line["failure"] for line in lines}
    assert library in failures, run.stdout + run.stderr
    if failures[library] is not None:
        pytest.fail(f"{library}\n{failures[library]}\n{run.stderr[-4000:]}", pytrace=False)


def test_left_out_files_are_told(run: subprocess.CompletedProcess[str]) -> None:
    assert "training_args.bin" in run.stderr, run.stderr[-4000:]
