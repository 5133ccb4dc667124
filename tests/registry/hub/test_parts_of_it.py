"""The parts that decide on their own: ignore files, model cards, ranges, routes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from registry.byte_range import ByteRange, UnsatisfiableRangeError, parse_range
from registry.hub.card import CardError, read_card
from registry.hub.gitignore import GitIgnore
from registry.hub.routing import Match, Route, RouteTable

IGNORE = """
# a comment
*.log
!keep.log
/only-root.txt
checkpoint-*/
build/out
**/deep.txt
docs/**/draft.md
[ab]?.tmp
[!x]z.tmp
\\#literal
trailing\x20\x20
.hidden/*
!.hidden/shown
"""
PATHS = """
a.log x/a.log keep.log x/keep.log only-root.txt x/only-root.txt checkpoint-5/state.json x/checkpoint-6/y/z.json
checkpoint-5 build/out build/out/x x/build/out deep.txt a/b/deep.txt docs/draft.md docs/a/b/draft.md x/docs/draft.md
a1.tmp b2.tmp c3.tmp az.tmp xz.tmp #literal trailing .hidden/secret .hidden/shown a.logs log README.md
""".split()


async def _handler() -> None: ...


def test_ignore_files_are_read_as_git_reads_them(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(IGNORE)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    answer = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        input="\n".join(PATHS),
        capture_output=True,
        text=True,
        check=True,
    )
    by_git = set(answer.stdout.splitlines())
    assert len(by_git) > 10
    ignore = GitIgnore(IGNORE)
    assert {path for path in PATHS if ignore.ignores(path)} == by_git


def test_ignore_patterns_take_bounded_time() -> None:
    ignore = GitIgnore("\n".join(["*a" * 200 + "b"] * 20 + ["**/" * 100 + "b"] * 20))
    begun = time.monotonic()
    assert not ignore.ignores("/".join(["a" * 250] * 2))
    assert time.monotonic() - begun < 5


def test_model_cards() -> None:
    assert read_card(b"# Title") is None
    assert read_card(b"") is None
    assert read_card(b"---\n---\ntext") is None
    assert read_card(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\ntext") == {"license": "mit"}
    card = read_card(b"---\nwhen: 2024-01-01\nn: .nan\n1: {a: [1, 2.5, null, true]}\n---\n---\n")
    assert card == {"when": "2024-01-01", "n": "nan", "1": {"a": [1, 2.5, None, True]}}
    for broken in (
        b"---\n- a\n---\n",
        b"---\na: [\n---\n",
        b"---\na: !!python/object:os.system x\n---\n",
        b"---\na: &x [1]\nb: *x\n---\n",
        b"---\na: " + b"[" * 40 + b"]" * 40 + b"\n---\n",
        b"---\na: \xff\n---\n",
        b"---\na: " + b"[" * 20_000 + b"\n---\n",
        b"---\na: [" + b"1," * 12_000 + b"]\n---\n",
    ):
        with pytest.raises(CardError):
            read_card(broken)


def test_ranges() -> None:
    assert parse_range("bytes=0-0", size=10) == ByteRange(0, 1)
    assert parse_range("bytes=5-", size=10) == ByteRange(5, 10)
    assert parse_range("bytes=-3", size=10) == ByteRange(7, 10)
    assert parse_range("bytes=-30", size=10) == ByteRange(0, 10)
    assert parse_range("bytes=2-99", size=10) == ByteRange(2, 10)
    for everything in (
        None,
        "",
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,3-4",
        "lines=0-1",
        "bytes=a-b",
        "bytes=" + "9" * 99 + "-",
    ):
        assert parse_range(everything, size=10) is None
    for beyond, size in (("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)):
        with pytest.raises(UnsatisfiableRangeError):
            parse_range(beyond, size=size)


def test_routes() -> None:
    table = RouteTable(
        [
            Route("GET", "/api/models", _handler),
            Route("GET", "/api/models/{tenant}/{name}", _handler),
            Route("GET", "/api/models/{tenant}/{name}/tree/{revision}/{path...}", _handler),
            Route("POST", "/{tenant}/{name}.git/info/lfs/objects/batch", _handler),
        ]
    )

    def values(method: str, path: bytes) -> dict[str, str] | frozenset[str]:
        found = table.find(method, path)
        return found.values if isinstance(found, Match) else found

    assert values("GET", b"/api/models") == {}
    assert values("GET", b"/api/models/a/b%20c") == {"tenant": "a", "name": "b c"}
    assert values("GET", b"/api/models/a/b/tree/x%2Fy/c/d%2Fe") == {
        "tenant": "a",
        "name": "b",
        "revision": "x/y",
        "path": "c/d/e",
    }
    assert values("POST", b"/a/b.c.git/info/lfs/objects/batch") == {"tenant": "a", "name": "b.c"}
    assert values("PUT", b"/api/models") == frozenset({"GET"})
    for nothing in (
        b"",
        b"/",
        b"/api/models/",
        b"/api/models//b",
        b"/api/models/a/b/",
        b"/a/.git/info/lfs/objects/batch",
    ):
        assert values("GET", nothing) == frozenset() or values("POST", nothing) == frozenset(), nothing
    assert values("GET", b"/api/models/a/" + b"x" * 9000) == frozenset()
