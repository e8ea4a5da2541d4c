"""Builds the images and starts the containers of the container tests."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from tests.containers.containers import Pair, running_pair
from tests.support.parts import need_command
from tests.support.servers import server_binary

ROOT = Path(__file__).resolve().parents[2]
NATS_IMAGE = "nats-backpressure-test/nats:latest"
SIDECAR_IMAGE = "nats-backpressure-test/sidecar:latest"

StartPair = Callable[..., Pair]
Connect = Callable[[Pair], Awaitable[Client]]


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
    build(docker, NATS_IMAGE, context)
    return NATS_IMAGE


@pytest.fixture(scope="session")
def sidecar_image(docker: str) -> str:
    """Our image as it ships, on the base that SIDECAR_BASE_IMAGE names."""
    base = os.environ.get("SIDECAR_BASE_IMAGE")
    arguments = ["--build-arg", "VERSION=test", *(["--build-arg", f"BASE={base}"] if base else [])]
    build(docker, SIDECAR_IMAGE, ROOT, "--file", str(ROOT / "deploy" / "Dockerfile"), *arguments)
    return SIDECAR_IMAGE


def build(docker: str, tag: str, context: Path, *arguments: str) -> None:
    # The host's network: a package mirror that only the host can reach is then reachable from the build, too.
    command = [docker, "build", "--network=host", "--tag", tag, *arguments, str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"docker build failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture
def start_pair(nats_image: str, sidecar_image: str, tmp_path: Path) -> Iterator[StartPair]:
    """A function that starts NATS and our sidecar beside it, on a network of their own."""
    with ExitStack() as stack:

        def start(**options: Any) -> Pair:
            pair = stack.enter_context(running_pair(nats_image, sidecar_image, tmp_path / "config", **options))
            stack.callback(lambda: print(pair.logs()))  # shown when the test failed
            return pair

        yield start


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """A function that connects a plain client to the servers of a pair, once they answer."""
    async with AsyncExitStack() as stack:

        async def connect(pair: Pair) -> Client:
            async with asyncio.timeout(30):
                while True:
                    try:
                        client = await nats.connect(pair.nats_urls, allow_reconnect=False, error_cb=_ignore)
                    except (OSError, nats.errors.Error):
                        await asyncio.sleep(0.05)
                        continue
                    stack.push_async_callback(client.close)
                    with suppress(nats.errors.Error):
                        await client.jetstream().account_info()
                        return client

        yield connect


async def _ignore(error: Exception) -> None: ...
