from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from registry import FileEntry, digest_of_files

GOLDEN = json.loads(Path(__file__).with_name("golden_digest.json").read_text())
ENTRIES = st.builds(
    FileEntry,
    path=st.text("abcdefgh.", min_size=1, max_size=8),
    size=st.integers(0, 2**40),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


def test_the_digest_is_what_it_always_was() -> None:
    files = [FileEntry(**entry) for entry in GOLDEN["files"]]
    assert str(digest_of_files(files)) == GOLDEN["digest"]
    assert GOLDEN["digest"] == "sha256:" + hashlib.sha256(GOLDEN["canonical"].encode()).hexdigest()


@given(st.lists(ENTRIES, unique_by=lambda entry: entry.path))
def test_the_order_of_files_does_not_matter(files: list[FileEntry]) -> None:
    assert digest_of_files(files) == digest_of_files(reversed(files))


@given(ENTRIES, ENTRIES)
def test_other_files_have_another_digest(one: FileEntry, other: FileEntry) -> None:
    assert (digest_of_files([one]) == digest_of_files([other])) == (one == other)
