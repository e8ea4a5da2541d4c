"""The commands, and what they talk to."""

from __future__ import annotations

import pytest

from tests.process.conftest import router, sidecar, wire
from tests.support.command import Command
from tests.support.servers import NatsServer

__all__ = ["router", "sidecar", "wire"]


@pytest.fixture
def command(server: NatsServer) -> Command:
    return Command(server.url)
