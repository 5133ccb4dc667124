"""Commits: operations become trees, sound trees become versions, and a native publish is a commit on main."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import registry
from registry.commits import CommitOutcome
from registry.errors import (
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    ParentMovedError,
    PermissionDeniedError,
    ReadOnlyRevisionError,
)
from registry.file_entry import Blob
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.tree_changes import AddFile, AddLarge, DeleteFile, DeleteFolder, Operation
from registry.trees import TreeFile, git_oid
from registry.version import Visibility

NAME = AdapterName("acme", "sql")
OPERATOR = Principal.operator()
STRANGER = Principal("rival", Role.ADMIN, "tok_rival")


class Repo:
    """Shorthand: stores contents and commits them to acme/sql."""

    def __init__(self, reg: registry.Registry) -> None:
        self.reg = reg
        reg.repositories.create(NAME, visibility=None, principal=OPERATOR)

    def store(self, content: bytes) -> Blob:
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        self.reg.quotas.reserve("acme", [(blob.sha256, blob.size)], principal=OPERATOR)
        with self.reg.blobs.receive() as writer:
            writer.write(content)
            writer.finish(blob)
        self.reg.quotas.mark_stored("acme", [(blob.sha256, blob.size)])
        return blob

    def add(self, path: str, content: bytes) -> AddFile:
        blob = self.store(content)
        return AddFile(TreeFile(path, blob.size, blob.sha256, False, git_oid(content)))

    def add_large(self, path: str, content: bytes) -> AddLarge:
        return AddLarge(path, self.store(content).sha256, None)

    def folder(self, folder: Path) -> list[Operation]:
        return [
            (self.add_large if path.suffix == ".safetensors" else self.add)(path.name, path.read_bytes())
            for path in sorted(folder.iterdir())
        ]

    def commit(
        self, *operations: Operation, branch: str = "main", parent: str | None = None, principal: Principal = OPERATOR
    ) -> CommitOutcome:
        return self.reg.commits.apply(
            NAME, branch, operations, parent=parent, title="change", message="", principal=principal
        )

    def paths(self, revision: str = "main") -> list[str]:
        return list(self.reg.snapshots.at(NAME, revision, OPERATOR).files)


@pytest.fixture
def repo(reg: registry.Registry) -> Repo:
    return Repo(reg)


def test_a_sound_folder_is_a_version_that_resolves(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    outcome = repo.commit(*repo.folder(make_adapter()), repo.add("notes/data.json", b"{}"))
    assert outcome.commit.version == 1
    assert outcome.refusal is None
    version = repo.reg.resolve("acme/sql", principal=OPERATOR)
    assert version.number == 1
    assert [file.path for file in version.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraplex.json",
    ]


def test_other_files_beside_an_adapter_make_no_other_version(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    first = repo.commit(*repo.folder(make_adapter()))
    second = repo.commit(repo.add("tokenizer.json", b"{}"))
    assert second.commit.version == first.commit.version == 1
    third = repo.commit(repo.add("README.md", b"# Card"))
    assert third.commit.version == 2
    assert [version.number for version in repo.reg.list_versions("acme/sql", OPERATOR)] == [2, 1]


def test_a_refused_adapter_is_a_commit_without_a_version(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    outcome = repo.commit(*repo.folder(folder))
    assert outcome.commit.version is None
    assert outcome.refusal is not None
    assert "incomplete-pair" in outcome.refusal
    assert len(repo.paths()) == 3


def test_the_same_commit_again_is_the_head(repo: Repo) -> None:
    first = repo.commit(repo.add("a.json", b"{}"))
    again = repo.commit(repo.add("a.json", b"{}"))
    assert not again.is_new
    assert again.commit == first.commit
    assert len(repo.reg.snapshots.log(NAME, "main", OPERATOR, limit=10)) == 2, "the initial commit and one more"


def test_a_moved_head_refuses_the_commit_of_who_did_not_see_it(repo: Repo) -> None:
    first = repo.commit(repo.add("a.json", b"1"))
    second = repo.commit(repo.add("a.json", b"2"), parent=first.commit.id[:7])
    with pytest.raises(ParentMovedError) as caught:
        repo.commit(repo.add("a.json", b"3"), parent=first.commit.id)
    assert caught.value.actual == second.commit.id
    assert repo.reg.snapshots.at(NAME, "main", OPERATOR).commit.id == second.commit.id


def test_a_commit_whose_answer_was_lost_is_sent_again(repo: Repo) -> None:
    first = repo.commit(repo.add("a.json", b"1")).commit.id
    change = (repo.add("b.json", b"2"), DeleteFile("a.json"))
    second = repo.commit(*change, parent=first)
    again = repo.commit(*change, parent=first)
    assert (again.commit, again.is_new) == (second.commit, False)
    repo.commit(repo.add("c.json", b"3"))
    with pytest.raises(ParentMovedError):
        repo.commit(*change, parent=first)


def test_commits_at_once_lose_nothing(repo: Repo) -> None:
    changes = [repo.add(f"{number}.json", b"%d" % number) for number in range(6)]
    with ThreadPoolExecutor(len(changes)) as threads:
        outcomes = list(threads.map(repo.commit, changes))
    assert repo.paths() == [f"{number}.json" for number in range(6)]
    log = repo.reg.snapshots.log(NAME, "main", OPERATOR, limit=10)
    assert {outcome.commit.id for outcome in outcomes} == {commit.id for commit in log[:6]}

    def with_parent(change: Operation) -> bool:
        try:
            repo.commit(change, parent=log[0].id)
        except ParentMovedError:
            return False
        return True

    rivals = [repo.add("same.json", b"rival %d" % number) for number in range(4)]
    with ThreadPoolExecutor(len(rivals)) as threads:
        assert sum(threads.map(with_parent, rivals)) == 1


def test_files_and_folders_are_deleted(repo: Repo) -> None:
    repo.commit(*(repo.add(path, path.encode()) for path in ("a.json", "b/c.json", "b/d/e.json", "bc.json")))
    repo.commit(DeleteFolder("b/"), DeleteFile("a.json"))
    assert repo.paths() == ["bc.json"]
    for missing in (DeleteFile("a.json"), DeleteFolder("b")):
        with pytest.raises(NotFoundError) as caught:
            repo.commit(missing)
        assert caught.value.kind == "entry"


def test_a_file_is_moved_in_one_commit(repo: Repo) -> None:
    repo.commit(repo.add_large("a.safetensors", b"weights"))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    repo.commit(DeleteFile("a.safetensors"), AddLarge("b.safetensors", sha256, None))
    assert repo.paths() == ["b.safetensors"]


def test_blobs_of_other_tenants_cannot_be_named(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    repo.reg.publish(make_adapter(), "rival/secret", principal=OPERATOR)
    theirs = repo.reg.resolve("rival/secret", principal=OPERATOR).files[1]
    with pytest.raises(InvalidValueError, match="was not uploaded to this tenant"):
        repo.commit(AddLarge("x.safetensors", theirs.sha256, theirs.size))


@pytest.mark.sqlite_only
def test_paths_outside_the_grammar_are_refused(repo: Repo) -> None:
    for path in ("", "/a", "a//b", "../a", "a/./b", "a\\b", "a\nb", "a/.git/b", "x" * 513, "d/" * 40):
        with pytest.raises(InvalidNameError):
            repo.commit(AddFile(TreeFile(path, 1, "a" * 64, False, "b" * 40)))


@pytest.mark.sqlite_only
def test_code_and_pickles_are_refused_by_name_and_by_content(repo: Repo) -> None:
    for path in ("a.bin", "deep/model.PT", "run.py", "x.pkl", "lib.so", "w.tar.gz"):
        with pytest.raises(InvalidValueError, match="can hold code"):
            repo.commit(repo.add(path, b"x"))
    for content in (b"\x80\x04\x95abc", b"PK\x03\x04abc", b"\x7fELFabc", b"#!/bin/sh"):
        with pytest.raises(InvalidValueError, match="kept as safetensors"):
            repo.commit(repo.add("innocent.json", content))


@pytest.mark.sqlite_only
def test_a_path_is_a_file_or_a_folder(repo: Repo) -> None:
    repo.commit(repo.add("a/b", b"x"))
    with pytest.raises(InvalidValueError, match="a file and a folder"):
        repo.commit(repo.add("a", b"x"))


def test_only_branches_take_commits(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    repo.commit(*repo.folder(make_adapter()))
    repo.reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    for revision in ("prod", "v1", "1"):
        with pytest.raises(ReadOnlyRevisionError):
            repo.commit(repo.add("a.json", b"x"), branch=revision)
    with pytest.raises(NotFoundError) as caught:
        repo.commit(repo.add("a.json", b"x"), branch="nowhere")
    assert caught.value.kind == "revision"


def test_who_may_not_read_finds_nothing_and_who_may_read_is_forbidden(repo: Repo) -> None:
    operation = repo.add("a.json", b"x")
    with pytest.raises(NotFoundError) as caught:
        repo.commit(operation, principal=STRANGER)
    assert caught.value.kind == "adapter"
    repo.reg.repositories.set_visibility(NAME, Visibility.PUBLIC, OPERATOR)
    with pytest.raises(PermissionDeniedError):
        repo.commit(operation, principal=STRANGER)
    with pytest.raises(PermissionDeniedError):
        repo.commit(operation, principal=Principal("acme", Role.READER, "tok_reader"))


def test_a_native_publish_is_a_commit_on_main(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    repo.commit(repo.add("tokenizer.json", b"{}"))
    folder = make_adapter()
    repo.reg.publish(folder, "acme/sql", principal=OPERATOR, message="Better\n\nMuch better")
    snapshot = repo.reg.snapshots.at(NAME, "main", OPERATOR)
    assert sorted(snapshot.files) == sorted(path.name for path in folder.iterdir()), "exactly the version's files"
    assert (snapshot.commit.title, snapshot.commit.message) == ("Better", "Much better")
    assert snapshot.version is not None
    assert snapshot.files["adapter_config.json"].git_oid == git_oid((folder / "adapter_config.json").read_bytes())
    assert snapshot.files["adapter_model.safetensors"].is_lfs


def test_revisions(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    commit = repo.commit(*repo.folder(make_adapter())).commit.id
    repo.reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    repo.reg.refs.create_branch(NAME, "release/1.0", None, OPERATOR)
    repo.reg.refs.create_tag(NAME, "golden", "main", "", OPERATOR)
    digest = repo.reg.resolve("acme/sql", principal=OPERATOR).digest
    repo.commit(repo.add("later.json", b"x"))
    for revision in ("prod", "v1", "1", digest, commit, commit[:7], "release/1.0", "golden", "refs/heads/release/1.0"):
        assert repo.reg.snapshots.at(NAME, revision, OPERATOR).commit.id == commit, revision
    for missing in ("nothing", "v2", "0", commit[:6], "sha256:" + "0" * 64, "x" * 5000, ""):
        with pytest.raises(NotFoundError) as caught:
            repo.reg.snapshots.at(NAME, missing, OPERATOR)
        assert caught.value.kind == "revision"


def test_tags_are_written_once(repo: Repo) -> None:
    first = repo.commit(repo.add("a.json", b"1")).commit.id
    repo.reg.refs.create_tag(NAME, "golden", "main", "", OPERATOR)
    with pytest.raises(ConflictError):
        repo.reg.refs.create_tag(NAME, "golden", "main", "", OPERATOR)
    repo.commit(repo.add("a.json", b"2"))
    repo.reg.refs.delete_tag(NAME, "golden", OPERATOR)
    with pytest.raises(ConflictError, match="never means two things"):
        repo.reg.refs.create_tag(NAME, "golden", "main", "", OPERATOR)
    repo.reg.refs.create_tag(NAME, "golden", first, "", OPERATOR)


@pytest.mark.sqlite_only
def test_ref_names_that_mean_something_else_are_refused(repo: Repo) -> None:
    for name in ("v3", "12", "deadbeef", "a..b", "a//b", "-a", "a b", "HEAD", "refs/heads/x", "é", "a.lock"):
        with pytest.raises(InvalidNameError):
            repo.reg.refs.create_branch(NAME, name, None, OPERATOR)


def test_refs_show_aliases_and_versions(repo: Repo, make_adapter: Callable[..., Path]) -> None:
    commit = repo.commit(*repo.folder(make_adapter())).commit.id
    repo.reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    repo.reg.refs.create_branch(NAME, "dev", None, OPERATOR)
    with pytest.raises(ConflictError, match="alias"):
        repo.reg.refs.create_branch(NAME, "prod", None, OPERATOR)
    for taken in ("main", "dev"):
        with pytest.raises(ConflictError, match="the name of a branch"):
            repo.reg.promote("acme/sql@1", taken, principal=OPERATOR)
    refs = repo.reg.refs.all(NAME, OPERATOR)
    assert [(ref.name, ref.commit_id, ref.is_derived) for ref in refs.branches] == [
        ("main", commit, False),
        ("dev", commit, False),
        ("prod", commit, True),
    ]
    assert [(ref.name, ref.commit_id, ref.is_derived) for ref in refs.tags] == [("v1", commit, True)]
    repo.reg.refs.delete_branch(NAME, "dev", OPERATOR)
    with pytest.raises(ConflictError):
        repo.reg.refs.delete_branch(NAME, "main", OPERATOR)
    with pytest.raises(ReadOnlyRevisionError):
        repo.reg.refs.delete_branch(NAME, "prod", OPERATOR)
