"""The commands, and what they talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.process.conftest import router, sidecar, wire
from tests.support.command import Command
from tests.support.servers import NatsServer

__all__ = ["router", "sidecar", "wire"]


@pytest.fixture
async def command(server: NatsServer) -> AsyncIterator[Command]:
    found = Command(server.url)
    yield found
    await found.close()
