"""docs/safekeeping.md says what the registry does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.documented_safekeeping import PAGE, prepare, render


def test_the_page_shows_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    assert render(page, home) == page, "run `python -m tests.registry.documented_safekeeping`"
