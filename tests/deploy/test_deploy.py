"""What deploy/ promises: the image copies what exists, the files parse, and each query names a metric that is exposed.

No container engine runs here; the image is built where there is one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from registry.cli.serve import serve as registry_serve
from serving.cli import serve
from serving.settings import ENGINE_COMMAND
from tests.serving.server import RunningServer, running_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
METRIC = re.compile(r"(?:vllm:|loraplex_)[a-z0-9_]+")
PACKAGES = ("basemodel", "registry", "serving", "trainer", "loraplex")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("deploy")
    with running_server(folder, engine=list(ENGINE_COMMAND), base="embedded") as running:
        running.wait_ready()
        running.complete("def add(a, b):", model="embedded", max_tokens=4, temperature=0).raise_for_status()
        yield running


def dashboard() -> dict[str, Any]:
    document = json.loads((DEPLOY / "grafana/dashboards/loraplex.json").read_text())
    assert isinstance(document, dict)
    return document


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def test_each_metric_of_the_dashboard_is_exposed(server: RunningServer) -> None:
    exposed = {
        sample.name
        for family in text_string_to_metric_families(server.client.get("/metrics").text)
        for sample in family.samples
    }
    wanted = {name for query in queries() for name in METRIC.findall(query)}
    assert len(wanted) > 20
    assert wanted - exposed == set()


def test_each_query_names_a_metric_and_has_balanced_brackets() -> None:
    for query in queries():
        assert METRIC.search(query), query
        for opening, closing in ("()", "[]", "{}"):
            assert query.count(opening) == query.count(closing), query


def test_panels_are_whole_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "prometheus"


def test_the_image_copies_what_exists_and_every_package() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _target = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source in allowed, f"{source} is left out by .dockerignore"
            copied.append(source)
    assert set(PACKAGES) <= set(copied)


def test_the_image_runs_as_an_ordinary_user_and_checks_readiness() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for stage in stages[-2:]:
        assert "USER loraplex" in stage
    assert "/readyz" in DOCKERFILE


def test_the_commands_of_image_and_compose_are_understood() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    commands = [json.loads(found) for found in re.findall(r'^CMD (\["serve".*\])$', DOCKERFILE, re.MULTILINE)]
    commands.append([re.sub(r"\$\{\w+:-(.*?)\}", r"\1", part) for part in services["loraplex"]["command"]])
    assert len(commands) == 3
    for name, *args in commands:
        assert name == "serve"
        serve.make_context("serve", args)


def test_the_registrys_command_is_understood() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    group, name, *args = services["registry"]["command"]
    assert (group, name) == ("registry", "serve")
    registry_serve.make_context("serve", list(args))
    assert args[args.index("--port") + 1] in services["registry"]["healthcheck"]["test"][-1]


def test_compose_builds_and_mounts_what_exists() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    build = document["services"]["loraplex"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    for name, service in document["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            exists = (DEPLOY / source).exists() if source.startswith(".") else source in document["volumes"]
            assert exists, f"{name} mounts {source}"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_prometheus_scrapes_the_service() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    host, _, port = scrape["static_configs"][0]["targets"][0].partition(":")
    assert host in services
    assert port in services["loraplex"]["command"]
    assert scrape["metrics_path"] == "/metrics"


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    folder = yaml.safe_load((provisioning / "dashboards/loraplex.yaml").read_text())["providers"][0]["options"]["path"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert source["url"].startswith("http://prometheus:")
    assert source["uid"] == "prometheus"
    mounts = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    assert folder in mounts


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
