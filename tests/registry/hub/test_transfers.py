"""Uploads and downloads with the stock client: commits, conflicts, revisions, large files, versions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import registry
from registry.hub.context import HubSettings
from tests.registry.adapter_folders import config_document, lora_tensors, modules_named
from tests.registry.hub.conftest import Server

# huggingface_hub 2.4 gives httpx2 the files to put as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

OPERATOR = registry.Principal.operator()


@pytest.fixture
def repo(api: HfApi) -> str:
    api.create_repo("acme/sql")
    return "acme/sql"


def test_a_folder_like_peft_makes_it_is_a_version_that_resolves(
    api: HfApi, repo: str, server: Server, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(has_manifest=False)
    (folder / "README.md").write_text("---\nlibrary_name: peft\nlicense: mit\n---\n# An adapter\n")
    commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="First")
    version = server.reg.resolve("acme/sql", principal=OPERATOR)
    assert version.number == 1
    assert not version.base_verified
    pulled = server.reg.pull(version, tmp_path / "pulled")
    assert {path.name: path.read_bytes() for path in pulled.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert [tag.name for tag in api.list_repo_refs(repo).tags] == ["v1"]
    for revision in (None, "main", "v1", "1", commit.oid, commit.oid[:7], version.digest):
        fetched = snapshot_download(
            repo, revision=revision, endpoint=server.url, token=api.token, cache_dir=tmp_path / f"cache-{revision}"
        )
        assert (Path(fetched) / "adapter_model.safetensors").read_bytes() == (
            folder / "adapter_model.safetensors"
        ).read_bytes()


def test_aliases_are_read_only_branches_and_virtual_repositories(
    api: HfApi, repo: str, server: Server, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [make_adapter(seed=seed) for seed in (1, 2)]
    commits = [api.upload_folder(repo_id=repo, folder_path=folder).oid for folder in folders]
    server.reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).branches} == {
        "main": commits[1],
        "prod": commits[0],
    }

    def weights(name: str, revision: str | None = None) -> bytes:
        path = hf_hub_download(
            name,
            "adapter_model.safetensors",
            revision=revision,
            endpoint=server.url,
            token=api.token,
            cache_dir=tmp_path / "cache",
        )
        return Path(path).read_bytes()

    expected = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert weights(repo) == expected[1]
    assert weights(repo, "prod") == weights("acme/sql.at.prod") == weights("acme/sql.at.v1") == expected[0]
    assert api.model_info("acme/sql.at.prod").sha == commits[0]
    fetched = snapshot_download("acme/sql.at.prod", endpoint=server.url, token=api.token, cache_dir=tmp_path / "cache")
    assert (Path(fetched) / "adapter_model.safetensors").read_bytes() == expected[0]
    server.reg.promote("acme/sql@2", "prod", principal=OPERATOR)
    assert weights("acme/sql.at.prod") == expected[1]
    for name, revision in ((repo, "prod"), ("acme/sql.at.prod", None), (repo, "v1")):
        with pytest.raises(HfHubHTTPError) as caught:
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="a.json", repo_id=name, revision=revision)
        assert caught.value.response.status_code == 403
    with pytest.raises(RevisionNotFoundError):
        api.model_info("acme/sql.at.nowhere")


def test_commits_add_copy_delete_and_conflict(api: HfApi, repo: str) -> None:
    first = api.create_commit(
        repo,
        [
            CommitOperationAdd("a.json", b'{"a": 1}'),
            CommitOperationAdd("big.safetensors", b"\0" * 1000),
            CommitOperationAdd("deep/er/c.txt", b"c"),
        ],
        commit_message="one",
        commit_description="longer",
    )
    second = api.create_commit(
        repo,
        [
            CommitOperationCopy("big.safetensors", "copy.safetensors"),
            CommitOperationCopy("a.json", "copy.json"),
            CommitOperationDelete("deep/"),
        ],
        commit_message="two",
        parent_commit=first.oid,
    )
    assert api.list_repo_files(repo) == ["a.json", "big.safetensors", "copy.json", "copy.safetensors"]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(repo, [CommitOperationAdd("a.json", b"2")], commit_message="x", parent_commit=first.oid)
    assert caught.value.response.status_code == 412
    api.delete_file("a.json", repo)
    with pytest.raises(EntryNotFoundError):
        api.delete_file("a.json", repo)
    commits = api.list_repo_commits(repo)
    assert [commit.title for commit in commits][1:] == ["two", "one", "initial commit"]
    assert (commits[1].commit_id, commits[2].message) == (second.oid, "longer")
    assert api.list_repo_commits(repo, revision=first.oid)[0].commit_id == first.oid
    assert api.super_squash_history is not None


def test_trees_and_paths(api: HfApi, repo: str) -> None:
    files = {"a.json": b"{}", "x/b.txt": b"b", "x/y/c.txt": b"c", "w.safetensors": b"\0" * 100}
    api.create_commit(repo, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="files")
    assert [item.path for item in api.list_repo_tree(repo)] == ["a.json", "w.safetensors", "x"]
    assert [item.path for item in api.list_repo_tree(repo, "x")] == ["x/b.txt", "x/y"]
    recursive = list(api.list_repo_tree(repo, recursive=True, expand=True))
    assert [item.path for item in recursive] == ["a.json", "w.safetensors", "x", "x/b.txt", "x/y", "x/y/c.txt"]
    by_path = {item.path: item for item in recursive}
    assert by_path["a.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b", "git hash-object of {}"
    assert by_path["w.safetensors"].lfs.size == 100
    assert all(item.last_commit.title == "files" for item in recursive)
    api.create_commit(repo, [CommitOperationAdd("x/b.txt", b"B")], commit_message="again")
    by_path = {item.path: item for item in api.list_repo_tree(repo, recursive=True, expand=True)}
    titles = {path: item.last_commit.title for path, item in by_path.items()}
    assert titles == {path: "again" if path in ("x", "x/b.txt") else "files" for path in by_path}
    assert [item.path for item in api.get_paths_info(repo, ["x", "a.json", "nowhere"])] == ["x", "a.json"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nowhere"))
    assert [file.filename for file in api.list_lfs_files(repo)] == ["w.safetensors"]
    info = api.model_info(repo, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes == {path: len(data) for path, data in files.items()}


def test_branches_and_tags(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    api.create_branch(repo, branch="release/1.0")
    api.create_branch(repo, branch="release/1.0", exist_ok=True)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=repo, revision="release/1.0")
    assert api.list_repo_files(repo) == ["a.txt"]
    assert api.list_repo_files(repo, revision="release/1.0") == ["a.txt", "b.txt"]
    api.create_tag(repo, tag="golden", revision="release/1.0", tag_message="good")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(repo, tag="golden")
    assert caught.value.response.status_code == 409
    api.delete_branch(repo, branch="release/1.0")
    assert api.list_repo_files(repo, revision="golden") == ["a.txt", "b.txt"]
    api.delete_tag(repo, tag="golden")
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files(repo, revision="golden")
    with pytest.raises(HfHubHTTPError, match="never change"):
        api.super_squash_history(repo)


def test_large_files_go_in_parts(api: HfApi, repo: str, server: Server, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(11_000_000)
    (tmp_path / "data.safetensors").write_bytes(content)
    puts = _count_puts(server)
    api.upload_file(path_or_fileobj=tmp_path / "data.safetensors", path_in_repo="data.safetensors", repo_id=repo)
    assert puts() == 3, "11 MB in parts of 5 MB"
    path = hf_hub_download(repo, "data.safetensors", endpoint=server.url, token=api.token, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == content
    api.upload_file(path_or_fileobj=tmp_path / "data.safetensors", path_in_repo="again.safetensors", repo_id=repo)
    assert puts() == 3, "the tenant has it already"


def _count_puts(server: Server) -> Callable[[], int]:
    """How many bodies were put to signed addresses since now."""
    from registry.hub import parts

    seen: list[int] = []
    original = parts.PartsSession.open_part

    def counting(self: parts.PartsSession, part: int) -> parts.PartWriter:
        seen.append(part)
        return original(self, part)

    parts.PartsSession.open_part = counting  # type: ignore[method-assign]
    return lambda: len(seen)


def test_each_refused_push_is_said_by_the_client_also_the_second_of_a_process(
    api: HfApi, make_adapter: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The client logs a topic once: the same refusal in another repository is another topic, as is another refusal."""
    ia3 = make_adapter(config=config_document(peft_type="IA3"), has_manifest=False)
    rank = make_adapter(config=config_document(r=0), has_manifest=False)
    with caplog.at_level("WARNING", logger="huggingface_hub"):
        for repo, folder in (("acme/first", ia3), ("acme/second", ia3), ("acme/second", rank)):
            api.create_repo(repo, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder)
    said = [record.getMessage() for record in caplog.records if "is no version" in record.getMessage()]
    assert len(said) == 3
    assert ("acme/first" in said[0], "acme/second" in said[1]) == (True, True)
    assert ("[unsupported-method]" in said[1], "[bad-config]" in said[2]) == (True, True)


def test_an_adapter_with_values_that_are_not_finite_is_no_version(
    api: HfApi, repo: str, server: Server, make_adapter: Callable[..., Path]
) -> None:
    tensors = lora_tensors(modules_named("q_proj", "v_proj"))
    next(iter(tensors.values()))[0, 0] = np.nan
    answers: list[str] = []
    folder = make_adapter(tensors=tensors)
    with httpx.Client(headers={"authorization": f"Bearer {api.token}"}) as client:
        api.upload_file(
            path_or_fileobj=folder / "adapter_model.safetensors",
            path_in_repo="adapter_model.safetensors",
            repo_id=repo,
        )
        lines = [
            {"key": "header", "value": {"summary": "config"}},
            {
                "key": "file",
                "value": {
                    "path": "adapter_config.json",
                    "content": (folder / "adapter_config.json").read_text(),
                    "encoding": "utf-8",
                },
            },
        ]
        response = client.post(
            f"{server.url}/api/models/{repo}/commit/main", content="\n".join(json.dumps(line) for line in lines)
        )
        answers.append(response.headers["x-hf-warning"])
    assert response.status_code == 200
    assert answers[0].startswith("version-")
    assert f"commit {response.json()['commitOid'][:7]} of {repo} is no version: " in answers[0]
    assert "not-finite" in answers[0]
    assert server.reg.refs.all(registry.AdapterName.parse(repo), OPERATOR).tags == ()


def test_pickles_are_refused_and_byproducts_left_out(api: HfApi, repo: str, make_adapter: Callable[..., Path]) -> None:
    with pytest.raises(BadRequestError, match="can hold code"):
        api.upload_file(path_or_fileobj=b"\x80\x04", path_in_repo="adapter_model.bin", repo_id=repo)
    with pytest.raises(BadRequestError, match="pickle"):
        api.upload_file(path_or_fileobj=b"\x80\x04", path_in_repo="adapter_model.json", repo_id=repo)
    folder = make_adapter()
    (folder / "training_args.bin").write_bytes(b"\x80\x04")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (folder / "checkpoint-5" / "state.json").write_bytes(b"{}")
    (folder / ".gitignore").write_text("checkpoint-*/\n")
    api.upload_folder(repo_id=repo, folder_path=folder)
    assert api.list_repo_files(repo) == [
        ".gitignore",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraplex.json",
    ]


def test_quotas_bound_uploads(api: HfApi, repo: str, server: Server) -> None:
    server.reg.set_quota("acme", quota_bytes=2_000, quota_versions=None)
    api.upload_file(path_or_fileobj=b"x" * 500, path_in_repo="a.txt", repo_id=repo)
    for path in ("b.safetensors", "b.txt"):
        with pytest.raises(HfHubHTTPError, match="may have 2,000 bytes") as caught:
            api.upload_file(path_or_fileobj=io.BytesIO(b"y" * 1_600), path_in_repo=path, repo_id=repo)
        assert caught.value.response.status_code == 403
    api.upload_file(path_or_fileobj=b"z" * 1_400, path_in_repo="c.safetensors", repo_id=repo)
    server.reg.quotas.check_integrity()


def test_roles_and_tenants(api: HfApi, repo: str, server: Server, token: Callable[..., str]) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    reader = HfApi(endpoint=server.url, token=token(role="reader"))
    assert reader.list_repo_files(repo) == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as caught:
        reader.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)
    assert caught.value.response.status_code == 403
    stranger = HfApi(endpoint=server.url, token=token("rival"))
    for call in (stranger.list_repo_files, stranger.model_info, stranger.list_repo_refs, stranger.auth_check):
        with pytest.raises(RepositoryNotFoundError):
            call(repo)
    with pytest.raises(RepositoryNotFoundError):
        stranger.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)
    api.update_repo_settings(repo, visibility="public")
    assert stranger.list_repo_files(repo) == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as caught:
        stranger.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)
    assert caught.value.response.status_code == 403
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=server.url, token=False).model_info(repo)


@pytest.fixture
def hub_settings() -> HubSettings:
    return HubSettings(part_bytes=5_000_000)
