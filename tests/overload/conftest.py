"""Whole runs: callers, gateway, router and sidecar as processes of their own around a fresh server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from sidecar.demo.play import play
from sidecar.demo.scene import Scene
from sidecar.demo.story import Silent
from sidecar.demo.summary import Take
from tests.support.servers import NatsServer

Played = Callable[[Scene], Awaitable[Take]]


@pytest.fixture
def played(server: NatsServer) -> Played:
    async def run(scene: Scene) -> Take:
        return await play(scene, server.url, Silent())

    return run
