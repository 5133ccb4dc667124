"""A canary seen by clients: a real server over the scripted engine, with a registry of the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import registry
from registry import Principal
from registry.canary import gets_canary, place_of
from serving.adapter_loader import Side
from serving.api.canary_instruments import NAMED_ALIASES, OTHER, CanaryInstruments
from tests.registry.adapter_folders import write_adapter
from tests.serving.conftest import Stocked, stock
from tests.serving.server import RunningServer, running_server

OPERATOR = Principal.operator()
NAME, ALIAS = "acme/sql", "acme/sql@prod"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    return stock(tmp_path_factory.mktemp("canary"))


@pytest.fixture(scope="module")
def split_server(
    tmp_path_factory: pytest.TempPathFactory, scripted_engine: list[str], home: Stocked
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, engine=scripted_engine, home=home.home, base="bytes") as running:
        yield running


@pytest.fixture
def reg(home: Stocked) -> Iterator[registry.Registry]:
    """The server's registry, whose alias points at version 1 without a canary before and after."""
    with registry.open(home.home / "registry") as opened:
        yield opened
        for canary in opened.canaries(NAME, OPERATOR):
            opened.stop_canary(NAME, canary.alias, principal=OPERATOR)
        if opened.aliases(NAME, OPERATOR)["prod"] != 1:
            opened.promote(f"{NAME}@1", "prod", principal=OPERATOR)


def side_of(response: httpx.Response, home: Stocked) -> str | None:
    """The side that the headers name, after checking that engine, model and fingerprint agree with it."""
    assert response.status_code == 200, response.text
    document = response.json()
    version = home.second if response.headers["x-loraplex-adapter"] == home.second.digest else home.first
    assert document["choices"][0]["message"]["content"] in ("a", version.digest)
    assert document["model"] == f"{NAME}@{version.number}"
    assert document["system_fingerprint"].endswith(version.digest[7:19])
    side = response.headers.get("x-loraplex-side")
    assert side is None or (side == "canary") == (version == home.second)
    return side


def expected_side(home: Stocked, key: str, permille: int) -> str:
    is_canary = gets_canary(alias=ALIAS, digest=home.second.digest, key=key, permille=permille)
    return "canary" if is_canary else "stable"


def ask(
    server: RunningServer, user: str | None = None, key: str | None = None, content: str = "!say a"
) -> httpx.Response:
    body = {"model": ALIAS, "messages": [{"role": "user", "content": content}]} | ({"user": user} if user else {})
    headers = {} if key is None else {"X-Request-Key": key}
    return server.client.post("/v1/chat/completions", json=body, headers=headers)


def test_users_keep_their_side(split_server: RunningServer, home: Stocked, reg: registry.Registry) -> None:
    assert side_of(ask(split_server, "u0"), home) is None
    reg.start_canary(f"{NAME}@2", "prod", permille=300, principal=OPERATOR)
    users = [f"u{number}" for number in range(30)]
    sides = {user: side_of(ask(split_server, user), home) for user in users}
    assert sides == {user: expected_side(home, user, 300) for user in users}
    assert set(sides.values()) == {"stable", "canary"}
    for user in users[:4]:
        assert side_of(ask(split_server, user, content="!who"), home) == sides[user]
    assert {user: side_of(ask(split_server, key=user), home) for user in users[:5]} == {
        user: sides[user] for user in users[:5]
    }
    assert side_of(ask(split_server, "u0", key="u1"), home) == sides["u0"], "`user` goes before the header"
    reg.change_canary(NAME, "prod", permille=600, principal=OPERATOR)
    wider = {user: side_of(ask(split_server, user), home) for user in users}
    assert all(wider[user] == "canary" for user, side in sides.items() if side == "canary")
    assert Counter(wider.values())["canary"] > Counter(sides.values())["canary"]


def test_without_a_key_requests_are_dealt_anew(
    split_server: RunningServer, home: Stocked, reg: registry.Registry
) -> None:
    reg.start_canary(f"{NAME}@2", "prod", permille=500, principal=OPERATOR)
    sides = Counter(side_of(ask(split_server), home) for _ in range(40))
    assert set(sides) == {"stable", "canary"}  # all on one side: once in 10^12 runs


@pytest.mark.parametrize("key", ["", "x" * 257])
def test_a_bad_key_is_refused(split_server: RunningServer, key: str) -> None:
    response = ask(split_server, key=key)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-key"


def test_promoting_the_candidate_ends_the_canary_at_once(
    split_server: RunningServer, home: Stocked, reg: registry.Registry
) -> None:
    reg.start_canary(f"{NAME}@2", "prod", permille=1, principal=OPERATOR)
    reg.promote_canary(NAME, "prod", principal=OPERATOR)
    response = ask(split_server, "u0")
    assert side_of(response, home) is None
    assert response.json()["model"] == f"{NAME}@2"


def test_a_model_is_shown_by_its_stable_version_with_its_canary(
    split_server: RunningServer, reg: registry.Registry
) -> None:
    def shown() -> dict[str, str]:
        return split_server.client.get(f"/v1/models/{ALIAS}").json()

    assert "canary" not in shown()
    reg.start_canary(f"{NAME}@2", "prod", permille=1000, principal=OPERATOR)
    for _ in range(4):
        assert (shown()["root"], shown()["canary"]) == (f"{NAME}@1", f"{NAME}@2")


def test_a_stream_names_its_side(split_server: RunningServer, reg: registry.Registry) -> None:
    reg.start_canary(f"{NAME}@2", "prod", permille=1000, principal=OPERATOR)
    body = {"model": ALIAS, "messages": [{"role": "user", "content": "!say a"}], "stream": True}
    response = split_server.client.post("/v1/chat/completions", json=body)
    assert response.headers["x-loraplex-side"] == "canary"
    assert f'"model":"{NAME}@2"' in response.text


def test_metrics_by_side_last_as_long_as_the_canary(
    split_server: RunningServer, home: Stocked, reg: registry.Registry
) -> None:
    ask(split_server, "u0")  # ends what an earlier canary left
    assert series(split_server) == {}
    reg.start_canary(f"{NAME}@2", "prod", permille=300, principal=OPERATOR)
    sides = Counter(str(side_of(ask(split_server, f"u{number}"), home)) for number in range(20))
    failing = next(user for user in map(str, range(1000)) if expected_side(home, user, 300) == "canary")
    assert split_server.chat("!fail internal", model=ALIAS, user=failing).status_code == 500
    found = series(split_server)
    assert found["loraplex_canary_requests_total", "stable"] == sides["stable"]
    assert found["loraplex_canary_requests_total", "canary"] == sides["canary"] + 1
    assert found["loraplex_canary_errors_total", "stable"] == 0
    assert found["loraplex_canary_errors_total", "canary"] == 1
    assert found["loraplex_canary_generation_tokens_total", "canary"] == sides["canary"] * 2
    assert found["loraplex_canary_request_seconds_count", "canary"] == sides["canary"]
    reg.stop_canary(NAME, "prod", principal=OPERATOR)
    ask(split_server, "u0")
    assert series(split_server) == {}


def series(server: RunningServer) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, sample.labels["side"]): sample.value
        for sample in samples
        if sample.name.startswith("loraplex_canary") and sample.labels["alias"] == ALIAS and "le" not in sample.labels
    }


def test_an_unverified_base_is_shown(
    split_server: RunningServer, home: Stocked, reg: registry.Registry, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "stock", seed=77, has_manifest=False)
    fingerprint = home.first.base_fingerprint
    reg.publish(folder, "acme/stock", principal=OPERATOR, base_fingerprint=fingerprint)
    response = split_server.chat("!say a", model="acme/stock")
    assert response.headers["x-loraplex-base-verified"] == "false"
    assert split_server.client.get("/v1/models/acme/stock").json()["base_verified"] is False
    listed = {entry["id"]: entry.get("base_verified") for entry in split_server.client.get("/v1/models").json()["data"]}
    assert (listed["acme/stock"], listed[NAME], listed[ALIAS], listed["base"]) == (False, True, True, None)
    assert "x-loraplex-base-verified" not in split_server.chat("!say a", model=NAME).headers
    assert split_server.client.get(f"/v1/models/{NAME}").json()["base_verified"] is True


@pytest.mark.parametrize("permille", [1, 50, 500, 999, 1000])
def test_the_split_is_fair(permille: int) -> None:
    keys = [f"user-{number}" for number in range(20_000)]
    given = sum(gets_canary(alias=ALIAS, digest="sha256:a", key=key, permille=permille) for key in keys)
    expected = len(keys) * permille / 1000
    spread = (expected * (1 - permille / 1000)) ** 0.5
    assert abs(given - expected) <= 4.5 * spread


def test_keys_only_come_when_the_weight_grows() -> None:
    keys = [f"user-{number}" for number in range(2_000)]
    before: set[str] = set()
    for permille in range(0, 1001, 50):
        given = {key for key in keys if gets_canary(alias=ALIAS, digest="sha256:a", key=key, permille=permille)}
        assert before <= given
        before = given
    assert before == set(keys)


def test_another_candidate_or_alias_deals_anew() -> None:
    keys = [f"user-{number}" for number in range(5_000)]

    def places(alias: str, digest: str) -> list[int]:
        return [place_of(alias=alias, digest=digest, key=key) for key in keys]

    first = places(ALIAS, "sha256:a")
    for other in (places(ALIAS, "sha256:b"), places("acme/sql@beta", "sha256:a")):
        same = sum((one < 100) and (two < 100) for one, two in zip(first, other, strict=True))
        assert 20 <= same <= 90  # independent: 1% of 5,000, give or take four deviations


def test_the_parts_of_the_draw_cannot_be_shifted() -> None:
    assert place_of(alias="a", digest="b", key="c") == place_of(alias="a", digest="b", key="c")
    assert 0 <= place_of(alias="a", digest="b", key="\udfff") < 1000  # half of a surrogate pair is a key, not a fault


def test_aliases_with_labels_are_bounded() -> None:
    metrics = CollectorRegistry()
    instruments = CanaryInstruments(metrics, seconds_buckets=(1.0,))
    for number in range(NAMED_ALIASES + 5):
        instruments.began(f"acme/a{number}@prod")
        instruments.request_ended(f"acme/a{number}@prod", Side.CANARY, outcome="ok", seconds=0.1, generation_tokens=2)
    value = metrics.get_sample_value
    assert value("loraplex_canary_requests_total", {"alias": OTHER, "side": "canary"}) == 5
    assert value("loraplex_canary_requests_total", {"alias": "acme/a0@prod", "side": "canary"}) == 1
    instruments.is_over("acme/a0@prod")
    assert value("loraplex_canary_requests_total", {"alias": "acme/a0@prod", "side": "canary"}) is None
    instruments.request_ended("acme/a0@prod", Side.CANARY, outcome="ok", seconds=0.1, generation_tokens=2)
    assert value("loraplex_canary_requests_total", {"alias": "acme/a0@prod", "side": "canary"}) is None
