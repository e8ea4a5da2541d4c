"""deploy/compose.yaml with the real command: it is valid, the demo's gateway publishes to the demo's router, and
Prometheus scrapes the sidecar. Only Grafana is not run: there is no package of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.containers.conftest import NATS_IMAGE, SIDECAR_IMAGE, build
from tests.support.parts import need_command
from tests.support.prometheus import program
from tests.support.sidecar import SUBJECT, eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROJECT = "nats-backpressure-test"
PROMETHEUS_IMAGE = "nats-backpressure-test/prometheus:latest"
IMAGES = {"NATS_IMAGE": NATS_IMAGE, "IMAGE": SIDECAR_IMAGE, "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE}


def command() -> list[str]:
    """`docker compose` where it is installed, else the older `docker-compose`."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return [need_command("docker-compose")]


class Compose:
    def __init__(self, file: Path) -> None:
        self._command = [*command(), "-p", PROJECT, "-f", str(file), "--project-directory", str(DEPLOY)]

    def __call__(self, *arguments: str) -> str:
        environment = {**os.environ, **IMAGES}
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_it_is_valid() -> None:
    config = yaml.safe_load(Compose(DEPLOY / "compose.yaml")("config"))
    assert config["services"].keys() == yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].keys()


@pytest.fixture(scope="module")
def prometheus_image(docker: str, sidecar_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Prometheus of this machine, where its public image has it."""
    context = tmp_path_factory.mktemp("prometheus-image")
    shutil.copy(program("prometheus"), context / "prometheus")
    lines = [f"FROM {sidecar_image}", "USER 0:0", "COPY prometheus /bin/prometheus", 'ENTRYPOINT ["/bin/prometheus"]']
    (context / "Dockerfile").write_text("\n".join(lines))
    build(docker, PROMETHEUS_IMAGE, context)
    return PROMETHEUS_IMAGE


@pytest.fixture
def compose(nats_image: str, sidecar_image: str, prometheus_image: str, tmp_path: Path) -> Iterator[Compose]:
    """The file as it is, but for the ports on this machine, which somebody else may use: Docker chooses them."""
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in document["services"].values():
        service["ports"] = ["127.0.0.1::" + port.split(":")[-1] for port in service.get("ports", [])]
        if not service["ports"]:
            del service["ports"]
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(document))
    compose = Compose(file)
    try:
        compose("up", "-d", "nats", "sidecar", "router", "gateway", "prometheus")
        yield compose
    finally:
        print(compose("logs", "--no-color", "--tail", "20"))
        compose("down", "--volumes", "--timeout", "5")


async def test_a_request_to_the_gateway_reaches_the_router_and_prometheus_sees_it(compose: Compose) -> None:
    gateway, prometheus = (compose("port", *at).strip() for at in (("gateway", "8080"), ("prometheus", "9090")))
    async with httpx.AsyncClient(timeout=10) as client:

        async def admitted() -> bool:
            try:
                return (await client.post(f"http://{gateway}/decide")).status_code == 202
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                return False

        async def watched() -> bool:
            query = {"query": f'router_backpressure_status{{subject="{SUBJECT}"}} == 0'}
            try:
                answer = await client.get(f"http://{prometheus}/api/v1/query", params=query)
                return bool(answer.json()["data"]["result"])
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                return False

        await eventually(admitted, "a request that is published", seconds=60)
        await eventually(watched, "the status of the router's subject, scraped", seconds=60)
