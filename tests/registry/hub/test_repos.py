"""Making, moving and deleting repositories with the stock client, listing them, and who may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError

import registry
from tests.registry.hub.conftest import Server

OPERATOR = registry.Principal.operator()


def test_whoami_names_the_tenant(api: HfApi, server: Server, token: Callable[..., str]) -> None:
    me = api.whoami()
    assert (me["name"], me["auth"]["accessToken"]["role"]) == ("acme", "write")
    reader = HfApi(endpoint=server.url, token=token(role="reader")).whoami()
    assert reader["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=server.url, token="lpx_" + "x" * 43).whoami()
    assert caught.value.response.status_code == 401


def test_a_repository_is_made_once(api: HfApi) -> None:
    url = api.create_repo("acme/sql")
    assert url.repo_id == "acme/sql"
    assert api.create_repo("acme/sql", exist_ok=True).repo_id == "acme/sql"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("acme/sql")
    assert api.create_repo("mine").repo_id == "acme/mine", "without a namespace it is the token's tenant's"
    info = api.model_info("acme/sql")
    assert info.private
    assert info.siblings == []
    assert api.repo_exists("acme/sql")
    assert not api.repo_exists("acme/nothing")
    assert api.file_exists("acme/sql", "a.json") is False


def test_what_cannot_be_made(api: HfApi, server: Server, token: Callable[..., str]) -> None:
    for name in ("acme/UPPER", "acme/a.at.b", "acme/-x"):
        with pytest.raises((BadRequestError, ValueError)):
            api.create_repo(name)
    with pytest.raises(BadRequestError, match="models only"):
        api.create_repo("acme/data", repo_type="dataset")
    for caller in (
        HfApi(endpoint=server.url, token=token("rival")),
        HfApi(endpoint=server.url, token=token(role="reader")),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            caller.create_repo("acme/sql")
        assert caught.value.response.status_code == 403


def test_a_repository_is_renamed_and_readers_follow(api: HfApi, server: Server, token: Callable[..., str]) -> None:
    api.create_repo("acme/old")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="acme/old")
    api.move_repo("acme/old", "acme/new")
    assert api.list_repo_files("acme/new") == ["a.txt"]
    assert api.model_info("acme/old").id == "acme/new"
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=server.url, token=token("rival")).model_info("acme/old")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("acme/old")
    assert caught.value.response.status_code == 403, "the name rests; a 409 would mean that it is there"


def test_a_repository_is_deleted(api: HfApi, server: Server, token: Callable[..., str]) -> None:
    api.create_repo("acme/sql")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="acme/sql")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=server.url, token=token("rival")).delete_repo("acme/sql")
    api.delete_repo("acme/sql")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("acme/sql")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/sql")
    api.delete_repo("acme/sql", missing_ok=True)


def test_listing_shows_what_the_caller_may_read(
    api: HfApi, server: Server, token: Callable[..., str], make_adapter: Callable[..., Path]
) -> None:
    for name in ("acme/a", "acme/b", "rival/secret", "rival/open"):
        server.reg.repositories.create(registry.AdapterName.parse(name), visibility=None, principal=OPERATOR)
    server.reg.publish(make_adapter(), "acme/a", principal=OPERATOR)
    server.reg.publish(make_adapter(), "rival/open", principal=OPERATOR, visibility="public")
    assert [model.id for model in api.list_models()] == ["acme/a", "acme/b", "rival/open"]
    assert [model.id for model in api.list_models(author="rival")] == ["rival/open"]
    assert [model.id for model in api.list_models(search="ACME/")] == ["acme/a", "acme/b"]
    assert [model.id for model in api.list_models(filter=["peft", "base_model:embedded"])] == ["acme/a", "rival/open"]
    assert [model.id for model in api.list_models(sort="last_modified", limit=1)] == ["rival/open"]
    assert [model.id for model in api.list_models(sort="created_at")] == ["rival/open", "acme/b", "acme/a"]
    rival = HfApi(endpoint=server.url, token=token("rival"))
    assert [model.id for model in rival.list_models(full=True)] == ["rival/open", "rival/secret"]
    full = next(iter(api.list_models(full=True)))
    assert {file.rfilename for file in full.siblings} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraplex.json",
    }
    assert full.library_name == "peft"
    chosen = next(iter(api.list_models(expand=["sha", "safetensors"])))
    assert chosen.safetensors.total == sum(chosen.safetensors.parameters.values()) > 0
    assert chosen.tags is None


def test_model_info_of_an_adapter(api: HfApi, server: Server, make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter()
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [sql, 2024-01-01]\n---\n# Text to SQL\n")
    server.reg.publish(folder, "acme/sql", principal=OPERATOR, message="First")
    info = api.model_info("acme/sql", files_metadata=True)
    assert info.card_data.license == "mit"
    assert info.card_data.tags == ["sql", "2024-01-01"]
    assert {"peft", "lora", "sql", "license:mit", "base_model:adapter:embedded"} <= set(info.tags)
    assert info.config["peft"]["peft_type"] == "LORA"
    assert info.base_models["models"][0]["id"] == "embedded"
    assert info.loraplex["version"] == 1
    assert info.used_storage == sum(path.stat().st_size for path in folder.iterdir())
    weights = next(file for file in info.siblings if file.rfilename.endswith(".safetensors"))
    assert weights.lfs.sha256 == next(
        file.sha256
        for file in server.reg.resolve("acme/sql", principal=OPERATOR).files
        if file.path == weights.rfilename
    )
    assert set(vars(api.model_info("acme/sql", expand=["sha", "tags"]))) >= {"sha", "tags"}
    with pytest.raises(BadRequestError, match="knows no field"):
        api.model_info("acme/sql", expand=["colour"])
    assert api.model_info("acme/sql", expand=["spaces"]).spaces is None
