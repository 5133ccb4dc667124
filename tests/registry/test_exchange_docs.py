"""The pages about events and mirrors: every kind is listed, and every command on them is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from loraplex.cli import COMMANDS
from registry.courier import CourierSettings
from registry.event import EventKind
from registry.events import WAIT_SECONDS_LIMIT
from registry.http.controllers.events import KEEP_ALIVE_SECONDS, STREAM_SECONDS
from registry.http.tide import CLIENTS_LIMIT, CLIENTS_OF_TENANT_LIMIT
from registry.mirrors import MISS_SECONDS
from registry.upstream import REDIRECTS_LIMIT
from registry.webhooks import WEBHOOKS_LIMIT
from serving.resolved_names import FOLLOWED_SECONDS, IN_USE_SECONDS, SILENCE_SECONDS, UNFOLLOWED_SECONDS

DOCS = Path(__file__).parents[2] / "docs"
EVENTS, MIRRORS = DOCS / "events.md", DOCS / "mirrors.md"
LINES = [
    line.removeprefix("$ ")
    for page in (EVENTS, MIRRORS)
    for line in page.read_text().splitlines()
    if line.startswith("$ ")
]


def test_every_kind_of_event_is_explained() -> None:
    table = EVENTS.read_text().split("<!-- event kinds -->")[1].split("<!-- end of event kinds -->")[0]
    listed = re.findall(r"^\| `([a-z_.]+)` \| \S", table, re.MULTILINE)
    assert sorted(listed) == sorted(kind.value for kind in EventKind)


@pytest.mark.parametrize("line", LINES)
def test_every_command_on_the_pages_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the real command, with its options; not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text2sql.tar.gz").touch()
    (tmp_path / "layout").mkdir()
    program, name, *arguments = shlex.split(line)
    assert program == "loraplex"
    command: click.Command = COMMANDS[name].load()
    context = command.make_context(name, arguments)
    while isinstance(command, click.Group):
        subname, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, line
        command, context = found, found.make_context(subname, rest, parent=context)


def test_the_figures_on_the_pages() -> None:
    events, mirrors = (re.sub(r"\s+", " ", page.read_text()) for page in (EVENTS, MIRRORS))
    settings = CourierSettings()
    assert f"(at most {WAIT_SECONDS_LIMIT:g} s)" in events
    assert f"Every {KEEP_ALIVE_SECONDS:g} s there is a sign of life" in events
    assert STREAM_SECONDS == 600
    assert "ends after ten minutes" in events
    assert f"At most {CLIENTS_OF_TENANT_LIMIT} clients of a tenant and {CLIENTS_LIMIT} together" in events
    assert f"at most {WEBHOOKS_LIMIT}." in events
    assert f"within {settings.attempt_seconds:g} s" in events
    pauses = [settings.first_retry_seconds * settings.retry_factor**n for n in range(3)]
    assert "after {:g} s, {:g} s, {:g} s and so on".format(*pauses) in events
    assert settings.longest_retry_seconds == 6 * 3600
    assert settings.attempts_limit == 12
    assert settings.jitter == 0.2
    assert f"after {FOLLOWED_SECONDS:g} s. While the feed" in events
    assert f"silent for {SILENCE_SECONDS:g} s" in events
    assert UNFOLLOWED_SECONDS == 0.5
    assert IN_USE_SECONDS == 600
    assert MISS_SECONDS == 60
    total_seconds = sum(
        min(settings.first_retry_seconds * settings.retry_factor**n, settings.longest_retry_seconds)
        for n in range(settings.attempts_limit - 1)
    )
    assert 0.8 < total_seconds / 86_400 < 1.2
    assert REDIRECTS_LIMIT == 5
    assert "at most five" in mirrors
