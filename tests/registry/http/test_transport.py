"""The client on a network that breaks: reads are tried again, changes never, and no damaged byte is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import registry
from registry.client import RemoteRegistry
from registry.errors import IntegrityError, InvalidValueError, PermissionDeniedError, UnreachableError
from registry.principal import OPERATOR, Principal, Role
from registry.registry import Registry
from registry.remote.download import needs_proxy
from registry.remote.transport import TRIES, part
from tests.registry.http.cutting_proxy import CuttingProxy, cutting_proxy
from tests.registry.http.server import serving

NAME = "acme/sql"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def proxy(reg_sqlite: Registry, make_adapter: Callable[..., Path]) -> Iterator[CuttingProxy]:
    reg_sqlite.publish(make_adapter(), NAME, principal=OPERATOR)
    with serving(reg_sqlite) as url, cutting_proxy(url) as proxy:
        yield proxy


def test_a_read_is_tried_again_and_not_for_ever(proxy: CuttingProxy) -> None:
    with registry.open(proxy.url) as reg:
        proxy.faults = [0, 20]
        assert reg.resolve(NAME, principal=OPERATOR).number == 1
        assert proxy.connections == 3
    with registry.open(proxy.url) as reg:
        proxy.faults = [0] * 10
        with pytest.raises(UnreachableError) as caught:
            reg.resolve(NAME, principal=OPERATOR)
        assert caught.value.url == proxy.url
        assert proxy.connections == 3 + TRIES


def test_a_change_is_never_sent_twice(
    proxy: CuttingProxy, reg_sqlite: Registry, make_adapter: Callable[..., Path]
) -> None:
    for change in (
        lambda reg: reg.promote(f"{NAME}@1", "prod", principal=OPERATOR),
        lambda reg: reg.create_tenant("globex"),
        lambda reg: reg.publish(make_adapter(seed=5), NAME, principal=OPERATOR),
    ):
        before = proxy.connections
        with registry.open(proxy.url) as reg:
            proxy.faults = [5, None, None]
            with pytest.raises(UnreachableError):
                change(reg)
        assert proxy.connections == before + 1
        proxy.faults = []
    assert len(reg_sqlite.alias_history(NAME, "prod", OPERATOR)) == 1, "it had arrived, and once"


def test_downloads_stay_with_the_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not needs_proxy("http://registry.example:8080")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intern.example")
    assert needs_proxy("http://registry.example:8080")
    assert not needs_proxy("https://registry.example")
    assert not needs_proxy("http://a.intern.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert needs_proxy("https://registry.example")


def test_a_broken_download_goes_on_where_it_broke(proxy: CuttingProxy, tmp_path: Path, reg_sqlite: Registry) -> None:
    seen: list[tuple[str, int, int]] = []
    version = reg_sqlite.resolve(NAME, principal=OPERATOR)
    with RemoteRegistry(proxy.url, progress=lambda *progress: seen.append(progress)) as reg:
        proxy.faults = [None, 5000, 3000]  # of the second file
        folder = reg.pull(version, tmp_path / "copy")
    assert proxy.connections == len(version.files) + 2
    for file in version.files:
        assert (folder / file.path).stat().st_size == file.size
        passed = [bytes_passed for name, bytes_passed, _ in seen if name == file.path]
        assert passed == sorted(passed)
        assert passed[-1] == file.size
    assert registry.open(proxy.url).pull(version, folder) == folder, "verified, to the byte"
    with registry.open(proxy.url) as reg:
        proxy.faults = [3000] * 20
        with pytest.raises(UnreachableError):
            reg.pull(version, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []


def test_damaged_bytes_are_not_handed_out(proxy: CuttingProxy, tmp_path: Path, reg_sqlite: Registry) -> None:
    version = reg_sqlite.resolve(NAME, principal=OPERATOR)
    proxy.flip_at = 4000
    with registry.open(proxy.url) as reg, pytest.raises(IntegrityError):
        reg.pull(version, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


def test_a_server_that_is_none(proxy: CuttingProxy) -> None:
    with registry.open("http://127.0.0.1:9") as reg, pytest.raises(UnreachableError, match="cannot be used"):
        reg.bases()
    with registry.open(proxy.url + "/elsewhere") as reg, pytest.raises(UnreachableError, match="status 404"):
        reg.bases()


def test_a_closed_client_opens_again(proxy: CuttingProxy) -> None:
    reg = registry.open(proxy.url)
    assert len(reg.bases()) == 1
    reg.close()
    assert len(reg.bases()) == 1
    reg.close()
    reg.close()


@pytest.mark.parametrize(
    "address", ["http://", "http://h:0", "http://h:x", "https://u:p@h", "http://h?x=1", "http://h#x", "http:///path"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidValueError):
        registry.open(address)


def test_whose_token_is_sent() -> None:
    http = RemoteRegistry("http://h", token="own")._http
    assert http.headers(OPERATOR) == {"authorization": "Bearer own"}
    assert http.headers(None) == {}
    theirs = Principal(tenant="acme", role=Role.READER, token_id="tok_1", secret="theirs")
    assert http.headers(theirs) == {"authorization": "Bearer theirs"}
    with pytest.raises(PermissionDeniedError):
        http.headers(Principal(tenant="acme", role=Role.READER, token_id="tok_1"))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a b", "a%20b"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a/../b", "a%2F..%2Fb"),
        ("sha256:ab", "sha256:ab"),
        ("?", "%3F"),
    ],
)
def test_a_part_of_a_path_stays_one(text: str, quoted: str) -> None:
    assert part(text) == quoted
