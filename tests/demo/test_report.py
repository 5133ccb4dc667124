"""What the demo prints, where it must be exact: commands for a shell, digests, and any text on one line."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from loraplex.demo.plan import full_plan
from loraplex.demo.publishing import PublishedAdapter
from loraplex.demo.report import CELL_CHARACTERS, Report, curl, one_line, program, short
from loraplex.demo.runner import chosen_metrics


@pytest.mark.parametrize("prompt", ["plain", 'it\'s "quoted"', "two\nlines", "$HOME `id` \\", "naïve 🙂"])
def test_a_shell_and_the_server_read_the_prompt_as_it_is(prompt: str) -> None:
    version: Any = SimpleNamespace()
    adapter = PublishedAdapter(full_plan().adapters[1], version, token="lpx_secret")
    program, url, flag, header, data, body = shlex.split(curl("http://127.0.0.1:8000", adapter, prompt))
    assert (program, url, flag, data) == ("curl", "http://127.0.0.1:8000/v1/chat/completions", "-H", "-d")
    assert header == "Authorization: Bearer lpx_secret"
    request = json.loads(body)
    assert request["model"] == "acme/log2json@prod"
    assert request["messages"] == [{"role": "user", "content": prompt}]


def test_a_long_text_of_many_lines_fits_on_one() -> None:
    shown = one_line("\nfirst\n\nsecond " + "x" * 500)
    assert shown.startswith("first ⏎ second x")
    assert len(shown) == CELL_CHARACTERS
    assert "\n" not in shown


def test_a_short_digest_is_the_one_of_metrics_and_tables() -> None:
    assert short("sha256:" + "ab" * 32) == "sha256:abababababab"


def test_only_metrics_of_swapping_are_shown() -> None:
    lines = ["# HELP loraplex_adapter_slots", "loraplex_adapter_slots 2.0", "a 1.0", "loraplex_adapter_loads_total 3.0"]
    assert chosen_metrics("\n".join(lines)) == [lines[1], lines[3]]


def test_a_command_is_named_so_that_the_users_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(sys.executable).with_name("loraplex")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shlex.split(program()) == [str(script)]
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin")
    assert program() == "loraplex"


def test_the_last_lines_serve_the_demos_own_home_again() -> None:
    console = Console(width=40, record=True, file=io.StringIO())
    home = Path("/a home/[demo]")
    Report(console).stopped(8123, "/models/my base", home)
    printed = console.export_text().strip()
    words = shlex.split(printed.partition("same tokens: ")[2])
    assert printed.count("\n") == 0
    assert words[-7:] == ["serve", "--home", str(home), "--base", "/models/my base", "--port", "8123"]
    Report(console).stopped(8000, "embedded", home)
    assert "--base" not in console.export_text()


def test_what_to_try_is_one_line_each_for_a_shell() -> None:
    console = Console(width=40, record=True, file=io.StringIO())
    version: Any = SimpleNamespace()
    adapters = [PublishedAdapter(plan, version, token="lpx_secret") for plan in full_plan().adapters]
    home = Path("/a home/[demo]")
    Report(console).next_steps("http://127.0.0.1:8000", adapters, {a.plan.model: "it's [b]" for a in adapters}, home)
    lines = console.export_text().splitlines()
    asked = [shlex.split(line) for line in lines if line.startswith("curl ") and "/chat/" in line]
    assert [json.loads(words[-1])["model"] for words in asked] == [adapter.plan.model for adapter in adapters]
    assert "curl http://127.0.0.1:8000/metrics" in lines
    assert any(shlex.split(line)[-3:] == ["ls", "--home", str(home)] for line in lines if " ls " in line)
