"""Pages for browsers: what they show, to whom, and that nothing in them runs, is loaded or is taken for markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import registry
from registry.hub import pages
from tests.registry.adapter_folders import manifest_document, write_adapter
from tests.registry.hub.conftest import Server

OPERATOR = registry.Principal.operator()
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m'\"&{{ 7 * 7 }}"


@pytest.fixture
def stocked(server: Server, tmp_path: Path) -> Server:
    """Two versions of acme/sql: prod is the first, and the second its canary."""
    first = write_adapter(tmp_path / "first", seed=1)
    (first / "README.md").write_text(f"# card\n{HOSTILE}\n")
    second = write_adapter(
        tmp_path / "second", seed=2, manifest=manifest_document(metrics={"adapter": {HOSTILE[:60]: 0.5}})
    )
    server.reg.publish(first, "acme/sql", principal=OPERATOR, message=HOSTILE)
    server.reg.publish(second, "acme/sql", principal=OPERATOR)
    server.reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    server.reg.start_canary("acme/sql@2", "prod", permille=25, principal=OPERATOR)
    return server


@pytest.fixture
def browser(stocked: Server, token: Callable[..., str]) -> httpx.Client:
    """A browser with a reader's token as its password."""
    return httpx.Client(base_url=stocked.url, headers=BROWSER, auth=("me", token(role="reader")))


def test_the_address_of_a_repository_is_a_page(browser: httpx.Client, stocked: Server) -> None:
    with browser:
        answer = browser.get("/acme/sql")
        version = stocked.reg.resolve("acme/sql@2", principal=OPERATOR)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        for shown in (
            version.digest,
            "version 2",
            "2.5% of prod",
            'href="/acme/sql/tree/prod"',
            "hf download acme/sql --revision v2",
            f"export HF_ENDPOINT={stocked.url}",
            "loraplex pull acme/sql@2",
            '<b class="yes">yes</b> (max_lora_rank 8)',
            'href="/acme/sql/blob/main/adapter_model.safetensors"',
        ):
            assert shown in answer.text, shown
        assert "version 1</span>" in browser.get("/acme/sql/tree/prod").text
        assert "version 1</span>" in browser.get("/acme/sql/tree/v1/").text
        assert "version 1</span>" in browser.get("/acme/sql.at.prod").text
        commit = stocked.reg.refs.all(registry.AdapterName.parse("acme/sql"), OPERATOR).branches[0].commit_id
        assert commit in browser.get(f"/acme/sql/commit/{commit}").text
        head = browser.head("/acme/sql")
        assert (head.status_code, head.content) == (200, b"")


def test_every_link_leads_somewhere(browser: httpx.Client) -> None:
    with browser:
        waiting, seen = ["/"], set()
        while waiting:
            address = waiting.pop()
            if address in seen:
                continue
            seen.add(address)
            answer = browser.get(address)
            assert answer.status_code == 200, address
            if answer.headers["content-type"].startswith("text/html"):
                waiting += re.findall(r'href="([^"]*)"', answer.text)
        assert any("/resolve/" in address for address in seen)
        assert all(address in ("/", "/acme") or address.startswith("/acme/sql") for address in seen)


def test_nothing_of_an_adapter_is_markup(browser: httpx.Client) -> None:
    with browser:
        text = "".join(browser.get(f"/acme/sql/{place}").text for place in ("tree/v1", "tree/v2", "blob/v1/README.md"))
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "{{ 7 * 7 }}" in text
        tags = set(re.findall(r"<([a-z0-9]+)", text))
        assert not tags & {"script", "img", "iframe", "object", "form", "link", "svg", "base"}
        assert "\x1b" not in text
        assert "# card" not in text, "no file's content is shown"
        missing = browser.get("/acme/sql/blob/main/%3Cscript%3Ealert(1)%3C/script%3E")
        assert (missing.status_code, "<script>" in missing.text) == (404, False)


def test_the_policy_lets_nothing_in_but_the_one_style_sheet(browser: httpx.Client) -> None:
    with browser:
        for answer in (browser.get(path) for path in ("/acme/sql", "/acme/absent", "/", "/acme", "/nobody")):
            assert answer.headers["content-type"].startswith("text/html")
            [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
            assert answer.headers["content-security-policy"] == (
                f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            )
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert " style=" not in answer.text
            assert "url(" not in answer.text
            assert "http" not in re.sub(r"<pre>.*?</pre>", "", answer.text, flags=re.DOTALL), "it names no other place"


def test_only_who_asks_for_html_gets_it(raw: httpx.Client, stocked: Server) -> None:
    assert stocked.url
    for accept in ("*/*", "application/json", "text/html;q=0", "text/plain, text/html; q=0.0"):
        answer = raw.get("/acme/sql", headers={"accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json"), accept
    for accept in ("text/html", "application/json, text/html;q=0.1", "TEXT/HTML;level=1"):
        assert raw.get("/acme/sql", headers={"accept": accept}).status_code == 200, accept
    assert raw.get("/api/models/acme/sql", headers=BROWSER).json()["id"] == "acme/sql"
    assert raw.post("/acme/sql", headers=BROWSER).headers["content-type"] == "application/json"


def test_who_may_not_read_is_told_what_the_hub_tells(
    stocked: Server, token: Callable[..., str], tmp_path: Path
) -> None:
    def ask(path: str, **options: object) -> httpx.Response:
        return httpx.get(stocked.url + path, headers=BROWSER, **options)  # type: ignore[arg-type]

    rival = ("", token("rival"))
    for path in ("", "/tree/main", "/blob/main/README.md", "/commit/main"):
        private, missing = ask(f"/acme/sql{path}", auth=rival), ask(f"/acme/absent{path}", auth=rival)
        assert private.status_code == missing.status_code == 404
        assert private.text == missing.text
        stranger, nobody = ask(f"/acme/sql{path}"), ask(f"/acme/absent{path}")
        assert stranger.status_code == nobody.status_code == 401
        assert stranger.text == nobody.text
        assert stranger.headers["www-authenticate"] == 'Basic realm="Loraplex", charset="UTF-8"'
        assert ask(f"/acme/sql{path}", auth=("me", "lpx_wrong")).status_code == 401
    stocked.reg.publish(tmp_path / "first", "acme/open", principal=OPERATOR, visibility="public")
    assert ask("/acme/open", auth=rival).status_code == 200, "what is public is for every tenant's tokens"


def test_a_password_is_a_token_for_reading_only(stocked: Server, token: Callable[..., str]) -> None:
    with httpx.Client(base_url=stocked.url, auth=("", token())) as client:
        assert client.get("/acme/sql/resolve/main/adapter_config.json").status_code == 200
        assert client.get("/api/models/acme/sql").status_code == 401
        assert client.post("/api/repos/create", json={"name": "new", "organization": "acme"}).status_code == 401
        assert client.put("/acme/sql", headers=BROWSER).status_code == 401
    for broken in ("Basic", "Basic !!", "Basic " + base64.b64encode(b"no colon").decode(), "Basic \xff"):
        answer = httpx.get(
            f"{stocked.url}/acme/sql", headers=[*BROWSER.items(), (b"authorization", broken.encode("latin-1"))]
        )  # type: ignore[list-item]
        assert answer.status_code == 401, broken


def test_commits_without_a_version_and_old_addresses(
    stocked: Server, raw: httpx.Client, token: Callable[..., str]
) -> None:
    assert raw.post("/api/repos/create", json={"name": "empty", "organization": "acme"}).status_code == 200
    answer = raw.get("/acme/empty", headers=BROWSER)
    assert (answer.status_code, "no version" in answer.text, "No files yet" in answer.text) == (200, True, True)
    stocked.reg.move_adapter("acme/sql", "acme/renamed", OPERATOR)
    moved = raw.get("/acme/sql/tree/prod", headers=BROWSER)
    assert (moved.status_code, moved.headers["location"]) == (307, "/acme/renamed/tree/prod")


def test_a_long_history_is_shown_in_part(stocked: Server, raw: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "VERSIONS_SHOWN", 1)
    text = raw.get("/acme/sql", headers=BROWSER).text
    assert "Older ones" in text
    assert ">prod</a> is at version 1" in text
    assert stocked.url
