"""A server on which JetStream is switched off when the sidecar starts: it keeps trying, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import StartServer
from tests.support.sidecar import UNHURRIED, Sidecar, eventually

OFF = "jetstream: disabled"


async def test_a_sidecar_starts_before_jetstream_does(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(OFF)
    async with Sidecar(tmp_path, server.url, UNHURRIED) as sidecar:
        readiness = await sidecar.ready(nats="connected")
        assert (readiness["ready"], readiness["observing"]) == (True, False)

        async def named() -> bool:
            return '"stage.failing"' in sidecar.log and "JetStream" in sidecar.log

        await eventually(named, "the reason in the log", 30)
        assert (await sidecar.get("/healthz"))[0] == 200
        server.config = ""
        await server.restart()
        await sidecar.observing()
        assert (await sidecar.end())[0] == 0
