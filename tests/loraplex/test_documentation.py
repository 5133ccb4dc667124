"""Every `loraplex` and `make` command in the documentation exists, with the options that it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

from loraplex.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(loraplex [a-z][^`]*)`")
PLACEHOLDER = re.compile(r"[<>|]|\.\.\.|…")


def command_lines(text: str) -> list[str]:
    """Lines of code blocks that call `loraplex`, joined where they are continued."""
    joined = "".join(FENCE.findall(text)).replace("\\\n", " ")
    return _without_placeholders(line.strip().removeprefix("$ ") for line in joined.splitlines())


def mentions(text: str) -> list[str]:
    """Commands in the running text; an option may stand there without its value."""
    return _without_placeholders(INLINE.findall(FENCE.sub("", text)))


def _without_placeholders(found: Iterable[str]) -> list[str]:
    """Without rows of an output that begin with the word, which have two spaces after it."""
    return [line for line in found if re.match("loraplex \\S", line) and not PLACEHOLDER.search(line)]


def parse(words: list[str]) -> None:
    """Read the words as click would, without running anything: commands, options, and that options have values."""
    command: click.Command = main
    ctx = click.Context(main, info_name="loraplex")
    while True:
        _, rest, _ = command.make_parser(ctx).parse_args(list(words))
        if not isinstance(command, click.Group) or not rest:
            return
        name, *words = rest
        child = command.get_command(ctx, name)
        assert child is not None, f"there is no command {name!r}"
        command, ctx = child, click.Context(child, info_name=name, parent=ctx)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_is_understood(page: Path) -> None:
    text = page.read_text()
    wrong = []
    for line in [*command_lines(text), *mentions(text)]:
        try:
            parse(shlex.split(line, comments=True)[1:])
        except click.BadOptionUsage as error:
            if line not in mentions(text):
                wrong.append(f"{line}: {error}")
        except (click.UsageError, AssertionError, ValueError) as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


def test_the_check_notices_a_wrong_option_and_a_wrong_command() -> None:
    for line in ("serve --prot 1", "srve", "token destroy"):
        with pytest.raises((click.UsageError, AssertionError)):
            parse(line.split())
    text = "```\n$ loraplex serve \\\n  --port 1\n```\nand `loraplex ls`, `loraplex pull REF...`"
    assert command_lines(text) == ["loraplex serve    --port 1"]
    assert mentions(text) == ["loraplex ls"]


def test_each_make_target_of_the_documentation_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"`make ([a-z-]+)", text))
        for block in FENCE.findall(text):
            named |= set(re.findall(r"^(?:\$ )?make ([a-z-]+)", block, re.MULTILINE))
        assert named <= targets, f"{page.name}: {named - targets}"


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings as GitHub spells them, and the anchors written into it."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    spelled = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return spelled | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", FENCE.sub("", page.read_text())):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_and_module_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w./~])(?:tests|benchmarks|deploy|docs)/[\w/.-]*\w", page.read_text())
    modules = re.findall(r"-m ((?:tests|benchmarks|basemodel|serving)(?:\.\w+)*)", page.read_text())
    wrong = [name for name in named if not (ROOT / name).exists()]
    for module in modules:
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            wrong.append(module)
    assert wrong == []


def test_the_readme_and_the_benchmarks_show_the_same_tables() -> None:
    """A figure that stands in both is the same figure: measured anew, it changes in both."""
    tables = re.findall(r"^\| rows \|.*\n(?:\|.*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(tables) == 2
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [table for table in tables if table not in benchmarks] == []
