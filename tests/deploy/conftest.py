"""A server with exactly the users of deploy/nats/users.conf, and two sidecars on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest

from tests.conftest import StartServer
from tests.deploy.roles import FILE, ROLES, settings
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar


@pytest.fixture
async def guarded(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """A server on which a router's stream and consumer exist, and then exactly the users of the file."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    server = await start_server()
    nc = await nats.connect(server.url)
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    await nc.close()
    server.config = f"{FILE.read_text()}\ntrace: true\n"
    await server.restart()
    return server


@pytest.fixture
async def command(guarded: NatsServer) -> AsyncIterator[Command]:
    command = Command(f"nats://operator:secret-of-operator@127.0.0.1:{guarded.port}")
    yield command
    await command.close()


@pytest.fixture
async def replicas(guarded: NatsServer, tmp_path: Path) -> AsyncIterator[list[Sidecar]]:
    async with AsyncExitStack() as stack:
        both = [Sidecar(tmp_path, guarded.url, settings(tmp_path, name)) for name in ("one", "two")]
        for each in both:
            await stack.enter_async_context(each)
        for each in both:
            await each.observing()
        yield both
