"""JetStream of another account (`nats.js_api_prefix`): with exactly what is printed all four do all of their work."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
from click.testing import CliRunner

from nats_backpressure.cli import main
from tests.conftest import StartServer
from tests.deploy.roles import ROLES, settings
from tests.deploy.work import everybody_works
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar

API = "team.js"


@pytest.fixture
async def two_accounts(start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """What is printed, and one user of the account that has JetStream, who made the router's stream and consumer."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    file = tmp_path / "accounts.yaml"
    file.write_text(json.dumps({"nats": {"js_api_prefix": API}}))
    printed = CliRunner().invoke(main, ["permissions", "--config", str(file)]).stdout
    owner = printed.replace("jetstream: enabled", "jetstream: enabled, users: [{user: owner, password: owner}]", 1)
    server = await start_server(f"{owner}\ntrace: true\n")
    nc = await nats.connect(server.url, user="owner", password="owner")
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    await nc.close()
    return server


@pytest.mark.slow
async def test_each_does_all_of_its_work_with_the_jetstream_of_another_account(
    two_accounts: NatsServer, tmp_path: Path
) -> None:
    server = two_accounts
    command = Command(f"nats://operator:secret-of-operator@127.0.0.1:{server.port}", "--js-api-prefix", API)
    async with AsyncExitStack() as stack:
        replicas = [
            Sidecar(tmp_path, server.url, settings(tmp_path, name, js_api_prefix=API)) for name in ("one", "two")
        ]
        for each in replicas:
            await stack.enter_async_context(each)
        for each in replicas:
            await each.observing()
        await everybody_works(server, replicas, command, tmp_path / "recording", API)
    await command.close()
    stored = {path.name for path in (server.directory / "store").glob("jetstream/JETSTREAM/streams/*")}
    assert stored == {"ROUTER", "BACKPRESSURE_EVENTS", "KV_backpressure_state", "KV_backpressure_policy"}
    assert "Violation" not in server.log
