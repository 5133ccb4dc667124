"""docs/registry.md says what the registry does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.registry.documented import PAGE, prepare, render


def test_the_page_shows_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    assert render(page, home) == page, "run `python -m tests.registry.documented`"
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"home": home})
