"""The pages of the root and of a tenant: what they list, to whom, page by page; other clients get what they got."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import registry
from registry.hub import overview
from tests.registry.adapter_folders import write_adapter
from tests.registry.hub.conftest import Server

OPERATOR = registry.Principal.operator()
BROWSER = {"accept": "text/html,*/*;q=0.8"}


@pytest.fixture
def stocked(server: Server, tmp_path: Path) -> Server:
    """Three adapters of acme, the second of which is public; rival has a public one."""
    for seed, (name, visibility) in enumerate(
        (("acme/a", "private"), ("acme/b", "public"), ("acme/c", "private"), ("rival/z", "public")), start=1
    ):
        folder = write_adapter(tmp_path / f"run-{seed}", seed=seed)
        server.reg.publish(folder, name, principal=OPERATOR, visibility=visibility)
    server.reg.publish(write_adapter(tmp_path / "second", seed=9), "acme/a", principal=OPERATOR)
    server.reg.promote("acme/a@1", "prod", principal=OPERATOR)
    return server


@pytest.fixture
def ask(stocked: Server, token: Callable[..., str]) -> Callable[..., httpx.Response]:
    """Asks as a browser with a token of a tenant."""
    secrets = {tenant: token(tenant, role="reader") for tenant in ("acme", "rival")}

    def ask(path: str, tenant: str | None = "acme") -> httpx.Response:
        auth = None if tenant is None else ("", secrets[tenant])
        return httpx.get(stocked.url + path, headers=BROWSER, auth=auth)

    return ask


def adapters_in(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return re.findall(r'<td class="name">.*?href="/([a-z]+/[a-z]+)">', answer.text)


def test_each_reader_sees_what_it_may_read(ask: Callable[..., httpx.Response]) -> None:
    assert adapters_in(ask("/")) == ["acme/a", "acme/b", "acme/c", "rival/z"]
    assert adapters_in(ask("/", "rival")) == ["acme/b", "rival/z"]
    assert adapters_in(ask("/acme")) == adapters_in(ask("/acme/")) == ["acme/a", "acme/b", "acme/c"]
    assert adapters_in(ask("/acme", "rival")) == ["acme/b"]
    text = ask("/acme").text
    for shown in (
        'href="/acme/a/tree/v2">2</a>',
        'href="/acme/a/tree/prod">prod → 1</a>',
        '<span class="badge">public</span>',
        "embedded nf4",
        "7.2 kB",
    ):
        assert shown in text, shown


def test_strangers_learn_nothing(stocked: Server, ask: Callable[..., httpx.Response]) -> None:
    stocked.reg.create_tenant("secret")
    stocked.reg.set_visibility("rival/z", "private", OPERATOR)
    private, absent, empty = ask("/rival"), ask("/nobody"), ask("/secret")
    assert private.status_code == absent.status_code == empty.status_code == 404
    assert private.text == absent.text == empty.text
    assert ask("/", None).status_code == ask("/acme", None).status_code == ask("/nobody", None).status_code == 401
    assert ask("/acme", None).text == ask("/nobody", None).text
    assert ask("/acme", None).headers["www-authenticate"].startswith("Basic ")


def test_a_tenant_without_adapters_is_told_how_to_begin(stocked: Server, ask: Callable[..., httpx.Response]) -> None:
    stocked.reg.delete_adapter("rival/z", OPERATOR)
    answer = ask("/rival", "rival")
    assert adapters_in(answer) == []
    assert "loraplex publish FOLDER rival/NAME" in answer.text


@pytest.mark.parametrize("start", ["/", "/acme"])
def test_it_turns_pages(ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    everything = adapters_in(ask(start))
    monkeypatch.setattr(overview, "ADAPTERS_SHOWN", 1)
    seen, path = [], start
    while path:
        answer = ask(path)
        seen += adapters_in(answer)
        assert ("First page" in answer.text) == (path != start)
        path = next(iter(re.findall(r'href="([^"]*)">Next page', answer.text)), "")
    assert seen == everything


def test_what_it_does_not_take_is_an_error(ask: Callable[..., httpx.Response]) -> None:
    for query in ("?page=2", "?after=acme/a&after=acme/b", "?after=acme/a&limit=5", "?after=%3Cscript%3E"):
        answer = ask(f"/acme{query}")
        assert (answer.status_code, "<script>" in answer.text) == (400, False), query
    assert "after" in ask("/?page=2").text
    assert ask("/-acme").status_code == 400


def test_other_clients_get_what_they_got(stocked: Server, raw: httpx.Client) -> None:
    assert stocked.url
    for path in ("/", "/acme"):
        answer = raw.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json"), path
    assert raw.post("/acme", headers=BROWSER).headers["content-type"] == "application/json"
    for reserved in ("/api", "/metrics", "/readyz", "/startupz", "/v1"):
        assert "text/html" not in raw.get(reserved, headers=BROWSER).headers["content-type"], reserved
