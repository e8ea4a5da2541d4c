"""deploy/compose.yaml: what it names exists, and nothing is open to the network of the laptop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nats_backpressure.config.settings import load_settings
from nats_backpressure.demo.parts import PARTS, PORT, SCENARIO
from nats_backpressure.demo.processes import sidecar_settings
from tests.deploy.rendering import DEPLOY, KUSTOMIZE

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service(name: str) -> None:
    service = SERVICES[name]
    image = service["image"]
    assert re.fullmatch(r"\$\{(\w+_)?IMAGE:-[^:}]+:[^:}]+\}", image), "a version, which a variable may replace"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert set(service.get("depends_on", [])) <= SERVICES.keys()
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source


@pytest.mark.parametrize("name", ["sidecar", "router", "gateway", "load"])
def test_what_is_ours_writes_nothing_and_may_nothing(name: str) -> None:
    assert SERVICES[name]["read_only"] is True and SERVICES[name]["cap_drop"] == ["ALL"]


def test_the_parts_of_the_demo_are_those_that_there_are() -> None:
    parts = {name for name, service in SERVICES.items() if "entrypoint" in service}
    assert all(SERVICES[name]["entrypoint"][-1] == "nats_backpressure.demo.parts" for name in parts)
    assert parts == PARTS.keys()
    assert all(SERVICES[name]["command"] == [name] for name in parts)
    assert SERVICES["gateway"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert SERVICES["load"]["network_mode"] == "service:gateway", "it asks the gateway on its own machine"


@pytest.mark.parametrize(
    "file",
    [DEPLOY / "compose/sidecar/config.yaml", KUSTOMIZE / "example/config.yaml", KUSTOMIZE / "example-tls/config.yaml"],
)
def test_the_marks_are_those_of_the_demo(file: Any) -> None:
    (policy,) = yaml.safe_load(file.read_text())["policies"]
    assert [policy] == sidecar_settings(SCENARIO, 7778)["policies"]
    assert load_settings(file, {}).watch[0].stream == "ROUTER"


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "compose/grafana"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in SERVICES
    (provider,) = yaml.safe_load((provisioning / "dashboards/files.yaml").read_text())["providers"]
    targets = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    assert targets[provider["options"]["path"]] == "./grafana"


def test_prometheus_finds_its_file_and_scrapes_the_sidecar() -> None:
    command = next(part for part in SERVICES["prometheus"]["command"] if part.startswith("--config.file="))
    assert f"./prometheus:{Path(command.partition('=')[2]).parent}:ro" in SERVICES["prometheus"]["volumes"]
    config = yaml.safe_load((DEPLOY / "prometheus" / Path(command).name).read_text())
    assert all((DEPLOY / "prometheus" / file).exists() for file in config["rule_files"])
    (job,) = config["scrape_configs"]
    (targets,) = job["dns_sd_configs"]
    assert set(targets["names"]) <= SERVICES.keys()
    assert all(SERVICES[name]["ports"][0].endswith(f":{targets['port']}") for name in targets["names"])
