"""The runs of several benchmarks: each has a file of its own, and one that fails does not end the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import own_arguments
from benchmarks.gpu.run import Step, _run


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (["--quick"], ["--quick"]),
        (["--json", "out/all.json", "--quick"], ["--json", "out/all-step_floor.json", "--quick"]),
        (["--quick", "--json=all.json"], ["--quick", "--json=all-step_floor.json"]),
        (["--folder=a=b"], ["--folder=a=b"]),
    ],
)
def test_each_benchmark_writes_its_own_file(given: list[str], own: list[str]) -> None:
    assert own_arguments(given, "step_floor") == own


WRITES = "import sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write({!r})"


@pytest.mark.parametrize(
    ("code", "status", "summary"),
    [
        ("print('fine')", "no figures", "FileNotFoundError"),
        (WRITES.format('{"rows": [{"rows": 1, "step_ms": 2.5, "name": "x"}]}'), "ok", "rows 1, step_ms 2.5"),
        (WRITES.format("not json"), "no figures", "JSONDecodeError"),
        (WRITES.format('{"rows": [3]}'), "no figures", "AttributeError"),
        ("import os; os.abort()", "exit -6", ""),
        ("import time; time.sleep(60)", "over 1 s", ""),
    ],
)
def test_a_part_that_fails_is_a_line_of_the_table(tmp_path: Path, code: str, status: str, summary: str) -> None:
    limit_seconds = 1 if "sleep" in code else 60
    outcome = _run(Step("a part, here", ("-c", code), limit_seconds, writes_json=True), tmp_path, quick=True)
    assert outcome.status == status
    assert summary in outcome.summary
    assert (tmp_path / "a-part-here.log").exists()
