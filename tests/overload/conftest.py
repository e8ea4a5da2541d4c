"""Whole runs: callers, gateway, router and sidecar as processes of their own around a fresh server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from nats_backpressure.demo.run import play
from nats_backpressure.demo.scenario import Scene
from nats_backpressure.demo.summary import Take
from nats_backpressure.demo.terminal_output import Silent
from tests.support.servers import NatsServer

Played = Callable[[Scene], Awaitable[Take]]


@pytest.fixture
def played(server: NatsServer) -> Played:
    async def run(scene: Scene) -> Take:
        return await play(scene, server.url, Silent())

    return run
