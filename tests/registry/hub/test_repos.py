"""Making repositories with the stock client, their settings, and who may."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi


def test_whoami_names_the_tenant(api: HfApi) -> None:
    me = api.whoami()
    assert me["name"] == "acme"
    assert me["auth"]["accessToken"]["role"] == "write"


def test_a_repository_is_made_once(api: HfApi) -> None:
    url = api.create_repo("acme/sql")
    assert url.repo_id == "acme/sql"
    assert api.create_repo("acme/sql", exist_ok=True).repo_id == "acme/sql"
    with pytest.raises(Exception, match="already created"):
        api.create_repo("acme/sql")
