"""Builds the images and starts the two containers of the container test."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.containers import Pair, running_pair
from tests.support.parts import need_command
from tests.support.servers import server_binary

ROOT = Path(__file__).resolve().parents[2]
NATS_IMAGE = "nats-backpressure-test/nats:latest"
SIDECAR_IMAGE = "nats-backpressure-test/sidecar:latest"


@pytest.fixture(scope="session")
def docker() -> str:
    docker = need_command("docker")
    if subprocess.run([docker, "version"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("missing part: a Docker daemon (tests/containers/run starts one)")
    return docker


@pytest.fixture(scope="session")
def nats_image(docker: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server we test with anyway: its binary is static and needs nothing around it."""
    context = tmp_path_factory.mktemp("nats-image")
    shutil.copy(server_binary(), context / "nats-server")
    (context / "Dockerfile").write_text('FROM scratch\nCOPY nats-server /nats-server\nENTRYPOINT ["/nats-server"]\n')
    _build(docker, NATS_IMAGE, context)
    return NATS_IMAGE


@pytest.fixture(scope="session")
def sidecar_image(docker: str) -> str:
    """Our image as it ships, on the base that SIDECAR_BASE_IMAGE names."""
    base = os.environ.get("SIDECAR_BASE_IMAGE")
    arguments = ["--build-arg", f"BASE={base}"] if base else []
    _build(docker, SIDECAR_IMAGE, ROOT, "--file", str(ROOT / "deploy" / "Dockerfile"), *arguments)
    return SIDECAR_IMAGE


def _build(docker: str, tag: str, context: Path, *arguments: str) -> None:
    # The host's network: a package mirror that only the host can reach is then reachable from the build, too.
    command = [docker, "build", "--network=host", "--tag", tag, *arguments, str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"docker build failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture
def pair(nats_image: str, sidecar_image: str, tmp_path: Path) -> Iterator[Pair]:
    """A NATS container and our sidecar's, on a network of their own."""
    with running_pair(nats_image, sidecar_image, tmp_path) as pair:
        yield pair
        print(pair.logs())  # shown when the test failed
