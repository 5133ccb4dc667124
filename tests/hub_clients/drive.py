"""Drives one unmodified Hub client against a registry, feature by feature. Runs inside of the client's environment:

    HF_ENDPOINT=... HF_TOKEN=... HF_HOME=... python drive.py PHASE WORK_FOLDER      prints one JSON object per feature

WORK_FOLDER/plan.json names the repository, the adapter's folder and what else the features need. The phases are `write`
(before the first version is promoted to `prod`) and `read` (after it). It needs the standard library and
huggingface_hub, in any of the tested releases.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    get_hf_file_metadata,
    hf_hub_url,
    metadata_update,
)
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import HfHubHTTPError

FEATURES: list[Feature] = []
ADAPTER = "adapter_model.safetensors"


@dataclasses.dataclass
class Client:
    """What the features work with. `head` is the commit that the last write left."""

    api: HfApi
    admin: HfApi
    tenant: str
    repo: str
    foreign: str
    adapter: Path
    work: Path
    head: str = ""

    def read(self, path: str, **options: Any) -> bytes:
        """A file, as hf_hub_download gets it."""
        return Path(self.api.hf_hub_download(self.repo, path, **options)).read_bytes()


@dataclasses.dataclass(frozen=True)
class Feature:
    """One thing that clients do, and the calls by which they do it."""

    phase: str
    name: str
    run: Callable[[Client], None]


def feature(phase: str, name: str) -> Callable[[Callable[[Client], None]], Callable[[Client], None]]:
    """Add a function to the list, in the order of the file."""

    def add(run: Callable[[Client], None]) -> Callable[[Client], None]:
        FEATURES.append(Feature(phase, name, run))
        return run

    return add


@feature("write", "whoami")
def whoami(client: Client) -> None:
    found = client.api.whoami()
    assert found["name"] == client.tenant, found
    assert found["auth"]["accessToken"]["role"] == "write", found
    refused(401, lambda: HfApi(token="lpx_wrong").whoami())


@feature("write", "create_repo, exist_ok, repo_exists")
def create_repo(client: Client) -> None:
    assert not client.api.repo_exists(client.repo)
    url = client.api.create_repo(client.repo, private=True)
    assert url.repo_id == client.repo, url
    assert client.api.create_repo(client.repo, exist_ok=True).repo_id == client.repo
    refused(409, lambda: client.api.create_repo(client.repo))
    assert client.api.repo_exists(client.repo)


@feature("write", "upload_folder of a 12 MB adapter: a version")
def upload_folder(client: Client) -> None:
    done = client.api.upload_folder(
        repo_id=client.repo, folder_path=client.adapter, commit_message="First", commit_description="of all"
    )
    client.head = done.oid
    assert client.api.repo_info(client.repo).sha == done.oid
    tags = {tag.name: tag.target_commit for tag in client.api.list_repo_refs(client.repo).tags}
    assert tags == {"v1": done.oid}, tags


@feature("write", "upload_folder again: no new commit")
def upload_folder_again(client: Client) -> None:
    before = len(client.api.list_repo_commits(client.repo))
    done = client.api.upload_folder(repo_id=client.repo, folder_path=client.adapter)
    assert done.oid == client.head, (done.oid, client.head)
    assert len(client.api.list_repo_commits(client.repo)) == before


@feature("write", "upload_file from a path, bytes and a stream")
def upload_file(client: Client) -> None:
    path = client.work / "vocabulary.json"
    path.write_text(json.dumps({str(number): number for number in range(2000)}))
    streamed = b"streamed " * 200_000
    for name, source in (("vocabulary.json", path), ("README.md", b"# Hello\n"), ("more.safetensors", tensors())):
        client.api.upload_file(path_or_fileobj=source, path_in_repo=name, repo_id=client.repo)
    done = client.api.upload_file(
        path_or_fileobj=io.BytesIO(streamed), path_in_repo="data/long.txt", repo_id=client.repo
    )
    client.head = done.oid
    for name, content in (
        ("vocabulary.json", path.read_bytes()),
        ("README.md", b"# Hello\n"),
        ("more.safetensors", tensors()),
        ("data/long.txt", streamed),
    ):
        assert client.read(name) == content, name
    tags = [tag.name for tag in client.api.list_repo_refs(client.repo).tags]
    assert sorted(tags) == ["v1", "v2"], tags  # the README belongs to the version, and nothing else of these does


@feature("write", "list_repo_files, list_repo_tree, get_paths_info")
def listings(client: Client) -> None:
    files = client.api.list_repo_files(client.repo)
    assert {"adapter_config.json", ADAPTER, "README.md", "data/long.txt"} <= set(files), files
    tree = {item.path: item for item in client.api.list_repo_tree(client.repo, recursive=True)}
    assert tree[ADAPTER].size == (client.adapter / ADAPTER).stat().st_size
    assert tree[ADAPTER].lfs.sha256 == digest((client.adapter / ADAPTER).read_bytes()), tree[ADAPTER]
    assert tree["README.md"].blob_id == git_oid(b"# Hello\n"), tree["README.md"]
    assert "data" in tree
    assert tree["data"].tree_id
    top = [item.path for item in client.api.list_repo_tree(client.repo)]
    assert "data" in top
    assert "data/long.txt" not in top
    assert [item.path for item in client.api.list_repo_tree(client.repo, "data")] == ["data/long.txt"]
    expanded = {item.path: item for item in client.api.list_repo_tree(client.repo, expand=True)}
    assert expanded["README.md"].last_commit.title, expanded["README.md"]
    infos = client.api.get_paths_info(client.repo, ["README.md", "data", "no/such"], expand=True)
    assert sorted(info.path for info in infos) == ["README.md", "data"], infos


@feature("write", "model_info, list_models, list_repo_commits, list_repo_refs")
def infos(client: Client) -> None:
    info = client.api.model_info(client.repo, files_metadata=True)
    assert (info.id, info.sha, info.private, info.author) == (client.repo, client.head, True, client.tenant), info
    sibling = next(item for item in info.siblings or [] if item.rfilename == ADAPTER)
    assert sibling.size == (client.adapter / ADAPTER).stat().st_size
    assert client.repo in [model.id for model in client.api.list_models(author=client.tenant)]
    commits = client.api.list_repo_commits(client.repo)
    assert commits[0].commit_id == client.head
    first = next(commit for commit in commits if commit.title == "First")
    assert first.message == "of all", first
    assert commits[-1].title == "initial commit"
    refs = client.api.list_repo_refs(client.repo)
    assert {branch.name: branch.target_commit for branch in refs.branches}["main"] == client.head


@feature("write", "create_branch, upload to it, delete_branch")
def branches(client: Client) -> None:
    client.api.create_branch(client.repo, branch="feature/one")
    client.api.create_branch(client.repo, branch="feature/one", exist_ok=True)
    refused(409, lambda: client.api.create_branch(client.repo, branch="feature/one"))
    client.api.upload_file(
        path_or_fileobj=b"on a branch", path_in_repo="note.json", repo_id=client.repo, revision="feature/one"
    )
    assert client.read("note.json", revision="feature/one") == b"on a branch"
    assert not client.api.file_exists(client.repo, "note.json")
    client.api.create_branch(client.repo, branch="old", revision="v1")
    assert not client.api.file_exists(client.repo, "README.md", revision="old")
    for branch in ("feature/one", "old"):
        client.api.delete_branch(client.repo, branch=branch)
    assert [branch.name for branch in client.api.list_repo_refs(client.repo).branches] == ["main"]
    refused(403, lambda: client.api.delete_branch(client.repo, branch="main"), also=(400, 409))


@feature("write", "create_tag, delete_tag")
def tags(client: Client) -> None:
    client.api.create_tag(client.repo, tag="release-1", tag_message="as released")
    client.api.create_tag(client.repo, tag="release-1", exist_ok=True)
    refused(409, lambda: client.api.create_tag(client.repo, tag="release-1"))
    assert client.read("README.md", revision="release-1") == b"# Hello\n"
    refs = {tag.name: tag.target_commit for tag in client.api.list_repo_refs(client.repo).tags}
    assert refs["release-1"] == client.head, refs
    client.api.delete_tag(client.repo, tag="release-1")
    names = [tag.name for tag in client.api.list_repo_refs(client.repo).tags]
    assert "release-1" not in names
    assert "v1" in names


@feature("write", "create_commit with several operations, copies and parent_commit")
def commits(client: Client) -> None:
    stale = client.head
    done = client.api.create_commit(
        client.repo,
        [
            CommitOperationAdd("data/a.txt", b"a"),
            CommitOperationAdd("data/deep/b.txt", b"b"),
            CommitOperationDelete("vocabulary.json"),
            CommitOperationCopy("more.safetensors", "copied.safetensors"),
        ],
        commit_message="Several",
        parent_commit=client.head,
    )
    client.head = done.oid
    assert client.read("copied.safetensors") == tensors()
    files = client.api.list_repo_files(client.repo)
    assert "vocabulary.json" not in files
    assert {"data/a.txt", "data/deep/b.txt"} <= set(files)

    def conflict() -> None:
        operations = [CommitOperationAdd("data/a.txt", b"other")]
        client.api.create_commit(client.repo, operations, commit_message="Late", parent_commit=stale)

    refused(412, conflict)
    assert client.read("data/a.txt") == b"a"


@feature("write", "delete_file, delete_folder")
def deletions(client: Client) -> None:
    client.api.delete_file("copied.safetensors", client.repo)
    client.api.delete_folder("data/deep", client.repo)
    done = client.api.delete_file("more.safetensors", client.repo)
    client.head = done.oid
    files = client.api.list_repo_files(client.repo)
    assert "data/a.txt" in files
    assert not {"copied.safetensors", "data/deep/b.txt", "more.safetensors"} & set(files)
    refused(404, lambda: client.api.delete_file("no/such.txt", client.repo))


@feature("write", "pickles and code are refused, by-products of training left out")
def refused_files(client: Client) -> None:
    for name in ("pytorch_model.bin", "run.py", "model.pkl"):
        refused(400, lambda name=name: client.api.upload_file(  # type: ignore[misc]
            path_or_fileobj=b"\x80\x04.", path_in_repo=name, repo_id=client.repo))  # fmt: skip
    folder = client.work / "trained"
    folder.mkdir()
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    (folder / "optimizer.pt").write_bytes(b"\x80\x04.")
    (folder / "log.json").write_text("{}")
    client.head = client.api.upload_folder(repo_id=client.repo, folder_path=folder).oid
    files = client.api.list_repo_files(client.repo)
    assert "log.json" in files
    assert not {"training_args.bin", "optimizer.pt", "pytorch_model.bin"} & set(files)


@feature("write", "errors: RepositoryNotFound, RevisionNotFound, EntryNotFound, 401")
def errors(client: Client) -> None:
    for repo in (f"{client.tenant}/nothing-here", client.foreign):
        raises(hub_errors.RepositoryNotFoundError, lambda repo=repo: client.api.model_info(repo))  # type: ignore[misc]
        raises(hub_errors.RepositoryNotFoundError,
               lambda repo=repo: client.api.hf_hub_download(repo, "README.md"))  # type: ignore[misc]  # fmt: skip
        assert not client.api.repo_exists(repo)
    raises(hub_errors.RevisionNotFoundError, lambda: client.api.model_info(client.repo, revision="nowhere"))
    raises(hub_errors.RevisionNotFoundError, lambda: client.read("README.md", revision="nowhere"))
    raises(hub_errors.EntryNotFoundError, lambda: client.read("nothing.json"))
    assert not client.api.revision_exists(client.repo, "nowhere")
    assert client.api.revision_exists(client.repo, "v1")
    assert not client.api.file_exists(client.repo, "nothing.json")
    raises(hub_errors.RepositoryNotFoundError, lambda: HfApi(token="lpx_wrong").model_info(client.repo))
    stranger = HfApi(token="lpx_wrong")
    elsewhere = client.work / "elsewhere"
    raises(
        hub_errors.RepositoryNotFoundError,
        lambda: stranger.hf_hub_download(client.repo, ADAPTER, cache_dir=elsewhere),
    )
    upload = {"path_or_fileobj": b"x", "path_in_repo": "x.json", "repo_id": client.foreign}
    raises(hub_errors.RepositoryNotFoundError, lambda: client.api.upload_file(**upload))


@feature("write", "auth_check")
def auth_check(client: Client) -> None:
    client.api.auth_check(client.repo)
    raises(hub_errors.RepositoryNotFoundError, lambda: client.api.auth_check(client.foreign))
    if "write" in inspect.signature(client.api.auth_check).parameters:
        client.api.auth_check(client.repo, write=True)


@feature("write", "move_repo, delete_repo, update_repo_settings")
def repositories(client: Client) -> None:
    old, new = f"{client.repo}-old", f"{client.repo}-new"
    client.api.create_repo(old, private=True)
    client.api.upload_file(path_or_fileobj=b"moved", path_in_repo="note.md", repo_id=old)
    refused(403, lambda: client.api.move_repo(old, new))
    client.admin.move_repo(old, new)
    assert client.api.repo_exists(new)
    assert Path(client.api.hf_hub_download(new, "note.md")).read_bytes() == b"moved"
    for private in (False, True):
        client.admin.update_repo_settings(new, private=private)
        assert client.api.model_info(new).private is private
    refused(400, lambda: client.admin.update_repo_settings(new, gated="auto"))
    refused(403, lambda: client.api.delete_repo(new))
    client.admin.delete_repo(new)
    assert not client.api.repo_exists(new)
    refused(404, lambda: client.admin.delete_repo(new))
    client.admin.delete_repo(new, missing_ok=True)


@feature("read", "hf_hub_download by branch, alias, tag, version, short and full commit")
def downloads(client: Client) -> None:
    first = next(commit for commit in client.api.list_repo_commits(client.repo) if commit.title == "First").commit_id
    expected = (client.adapter / ADAPTER).read_bytes()
    for revision in ("main", "prod", "v1", "1", "refs/heads/main", first[:8], first):
        assert client.read(ADAPTER, revision=revision) == expected, revision
    assert client.read("README.md") == b"# Hello\n"
    for revision in ("prod", "v1", first[:8]):
        raises(hub_errors.EntryNotFoundError, lambda revision=revision: client.read("data/a.txt", revision=revision))  # type: ignore[misc]
    branches = {branch.name: branch.target_commit for branch in client.api.list_repo_refs(client.repo).branches}
    assert branches["prod"] == first, branches


@feature("read", "snapshot_download by branch, alias and version")
def snapshots(client: Client) -> None:
    expected = (client.adapter / ADAPTER).read_bytes()
    for revision in (None, "prod", "v1"):
        folder = Path(client.api.snapshot_download(client.repo, revision=revision))
        assert (folder / ADAPTER).read_bytes() == expected
        assert (folder / "data/a.txt").exists() == (revision is None), revision
    target = client.work / "local"
    client.api.snapshot_download(client.repo, local_dir=target, allow_patterns=["*.json"])
    assert sorted(path.name for path in target.iterdir() if path.is_file()) == sorted(
        name for name in client.api.list_repo_files(client.repo) if name.endswith(".json")
    )


@feature("read", "the virtual id TENANT/NAME.at.ALIAS")
def virtual_ids(client: Client) -> None:
    virtual = f"{client.repo}.at.prod"
    folder = Path(client.api.snapshot_download(virtual))
    assert (folder / ADAPTER).read_bytes() == (client.adapter / ADAPTER).read_bytes()
    assert not (folder / "data").exists()
    assert client.api.model_info(virtual).sha == client.api.model_info(client.repo, revision="prod").sha
    raises(hub_errors.RepositoryNotFoundError, lambda: client.api.model_info(f"{client.foreign}.at.prod"))
    raises(HfHubHTTPError, lambda: client.api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x.md", repo_id=virtual))  # fmt: skip


@feature("read", "aliases and versions are read only")
def read_only_refs(client: Client) -> None:
    for change in (
        lambda: client.api.upload_file(path_or_fileobj=b"x", path_in_repo="x.md", repo_id=client.repo, revision="prod"),
        lambda: client.api.delete_branch(client.repo, branch="prod"),
        lambda: client.api.delete_tag(client.repo, tag="v1"),
        lambda: client.api.create_tag(client.repo, tag="v7"),
        lambda: client.api.create_branch(client.repo, branch="v1"),
    ):
        raises(HfHubHTTPError, change)
    refs = client.api.list_repo_refs(client.repo)
    assert sorted(tag.name for tag in refs.tags) == ["v1", "v2"], refs
    assert sorted(branch.name for branch in refs.branches) == ["main", "prod"]


@feature("read", "another version by upload_folder")
def second_version(client: Client) -> None:
    folder = client.work / "second"
    folder.mkdir()
    for path in client.adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-3] ^= 1  # one bit of one weight
    (folder / ADAPTER).write_bytes(content)
    done = client.api.upload_folder(repo_id=client.repo, folder_path=folder)
    tags = {tag.name: tag.target_commit for tag in client.api.list_repo_refs(client.repo).tags}
    assert tags["v3"] == done.oid, tags
    assert client.read(ADAPTER) == bytes(content)
    assert client.read(ADAPTER, revision="v3") == bytes(content)
    assert client.read(ADAPTER, revision="prod") == (client.adapter / ADAPTER).read_bytes()
    assert client.api.model_info(client.repo).sha == done.oid


@feature("read", "get_hf_file_metadata, ranges through HfFileSystem")
def ranges(client: Client) -> None:
    content = (client.adapter / ADAPTER).read_bytes()
    url = hf_hub_url(client.repo, ADAPTER, revision="prod", endpoint=client.api.endpoint)
    metadata = get_hf_file_metadata(url, token=client.api.token or True)
    assert metadata.size == len(content)
    assert metadata.etag == digest(content), metadata
    assert metadata.commit_hash == client.api.model_info(client.repo, revision="prod").sha
    files = HfFileSystem()
    with files.open(f"{client.repo}@prod/{ADAPTER}", "rb", block_size=1 << 16) as stream:
        stream.seek(len(content) - 70_000)
        assert stream.read() == content[-70_000:]
        stream.seek(5)
        assert stream.read(11) == content[5:16]
    assert f"{client.repo}/{ADAPTER}" in files.ls(client.repo, detail=False)


@feature("read", "upload_large_folder, where the client has it; ModelCard.push_to_hub and load")
def large_folders_and_cards(client: Client) -> None:
    repo = f"{client.tenant}/large-folder"
    client.api.create_repo(repo)
    if hasattr(client.api, "upload_large_folder"):
        folder = shutil.copytree(client.adapter, client.work / "large-folder")  # it leaves a cache of its own behind
        client.api.upload_large_folder(
            repo_id=repo, folder_path=folder, repo_type="model", num_workers=2, print_report=False
        )
        assert [tag.name for tag in client.api.list_repo_refs(repo).tags] == ["v1"]
    if int(huggingface_hub.__version__.split(".")[0]) < 2:
        return  # they ask huggingface.co about cards, whatever HF_ENDPOINT says
    ModelCard("---\nlicense: mit\n---\n# Hello\n").push_to_hub(repo)
    metadata_update(repo, {"language": "en"})
    assert ModelCard.load(repo).data.to_dict() == {"license": "mit", "language": "en"}
    raises(ValueError, lambda: ModelCard("---\nlicense: &x [*x]\n---\n").validate())


def tensors() -> bytes:
    """A safetensors file that is no adapter: 400 kB of zeros and counting bytes."""
    data = bytes(range(256)) * 800 + bytes(200_000)
    header = json.dumps({"x": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refused(status: int, call: Callable[[], Any], also: tuple[int, ...] = ()) -> None:
    """The call must end with this HTTP status."""
    try:
        call()
    except Exception as error:
        found = getattr(getattr(error, "response", None), "status_code", None)
        if found is None and error.__cause__ is not None:
            found = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if found not in (status, *also):
            raise AssertionError(f"expected status {status}, and it was {found}") from error
    else:
        raise AssertionError(f"expected status {status}, and nothing was wrong")


def raises(kind: type[Exception], call: Callable[[], Any]) -> None:
    """The call must raise this class."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"expected {kind.__name__}, and it was {type(error).__name__}") from error
    raise AssertionError(f"expected {kind.__name__}, and nothing was wrong")


def main(phase: str, work: Path) -> None:
    """Run the features of a phase; each one is reported, whatever became of those before it."""
    plan = json.loads((work / "plan.json").read_text())
    client = Client(
        api=HfApi(),
        admin=HfApi(token=plan["admin_token"]),
        tenant=plan["tenant"],
        repo=plan["repo"],
        foreign=plan["foreign"],
        adapter=Path(plan["adapter"]),
        work=work,
    )
    for item in FEATURES:
        if item.phase != phase:
            continue
        started = time.perf_counter()
        try:
            item.run(client)
            failure = None
        except Exception:  # noqa: BLE001 - whatever it is, it is reported, and the next feature runs
            failure = traceback.format_exc()
        print(
            json.dumps({"feature": item.name, "failure": failure, "seconds": round(time.perf_counter() - started, 2)}),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
