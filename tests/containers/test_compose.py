"""deploy/compose.yaml with the real command: it is valid, and the demo's gateway publishes to the demo's router."""

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

from tests.containers.conftest import NATS_IMAGE, SIDECAR_IMAGE
from tests.support.parts import need_command
from tests.support.sidecar import SUBJECT, eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROJECT = "nats-backpressure-test"


def command() -> list[str]:
    """`docker compose` where it is installed, else the older `docker-compose`."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return [need_command("docker-compose")]


class Compose:
    def __init__(self, file: Path) -> None:
        self._command = [*command(), "-p", PROJECT, "-f", str(file), "--project-directory", str(DEPLOY)]

    def __call__(self, *arguments: str) -> str:
        environment = {**os.environ, "NATS_IMAGE": NATS_IMAGE, "IMAGE": SIDECAR_IMAGE}
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_it_is_valid() -> None:
    config = yaml.safe_load(Compose(DEPLOY / "compose.yaml")("config"))
    assert config["services"].keys() == yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].keys()


@pytest.fixture
def compose(nats_image: str, sidecar_image: str, tmp_path: Path) -> Iterator[Compose]:
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
        compose("up", "-d", "nats", "sidecar", "router", "gateway")
        yield compose
    finally:
        print(compose("logs", "--no-color", "--tail", "20"))
        compose("down", "--volumes", "--timeout", "5")


async def test_a_request_to_the_gateway_reaches_the_router(compose: Compose) -> None:
    gateway, sidecar = (compose("port", *at).strip() for at in (("gateway", "8080"), ("sidecar", "7778")))
    async with httpx.AsyncClient(timeout=10) as client:

        async def admitted() -> bool:
            try:
                return (await client.post(f"http://{gateway}/decide")).status_code == 202
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                return False

        async def watched() -> bool:
            page = (await client.get(f"http://{sidecar}/metrics")).text
            return f'router_backpressure_status{{subject="{SUBJECT}"}} 0.0' in page

        await eventually(admitted, "a request that is published", seconds=60)
        await eventually(watched, "the status of the router's subject", seconds=60)
