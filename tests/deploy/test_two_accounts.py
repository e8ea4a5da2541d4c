"""JetStream of another account (`nats.js_api_prefix`): with exactly what is printed all four do all of their work."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
from click.testing import CliRunner
from nats.errors import NoRespondersError

from nats_backpressure.cli import main
from tests.conftest import StartServer
from tests.deploy.roles import ROLES, settings
from tests.deploy.work import everybody_works, findings
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar

API = "team.js"


@pytest.fixture
async def two_accounts(start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """What is printed, with a user of each account who may do anything there; one made the router's stream."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    file = tmp_path / "accounts.yaml"
    file.write_text(json.dumps({"nats": {"js_api_prefix": API}}))
    printed = CliRunner().invoke(main, ["permissions", "--config", str(file)]).stdout
    printed = printed.replace("jetstream: enabled", "jetstream: enabled, users: [{user: owner, password: owner}]", 1)
    printed = printed.replace("    users: [\n", "    users: [\n    {user: anybody, password: anybody}\n", 1)
    server = await start_server(f"{printed}\ntrace: true\n")
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
        stack.push_async_callback(command.close)
        replicas = [
            Sidecar(tmp_path, server.url, settings(tmp_path, name, js_api_prefix=API)) for name in ("one", "two")
        ]
        for each in replicas:
            await stack.enter_async_context(each)
        for each in replicas:
            await each.observing()
        await everybody_works(server, replicas, command, tmp_path / "recording", API)
    assert (await findings(tmp_path, server, js_api_prefix=API)).keys() <= {"sampling", "version", "environment"}
    stored = {path.name for path in (server.directory / "store").glob("jetstream/JETSTREAM/streams/*")}
    assert stored == {"ROUTER", "BACKPRESSURE_EVENTS", "KV_backpressure_state", "KV_backpressure_policy"}
    assert "Violation" not in server.log


FOREIGN = (
    *("STREAM.DELETE.ROUTER", "STREAM.PURGE.ROUTER", "STREAM.MSG.GET.ROUTER", "DIRECT.GET.ROUTER"),
    *("STREAM.CREATE.COPY", "CONSUMER.CREATE.ROUTER.x", "CONSUMER.DELETE.ROUTER.router"),
    *("CONSUMER.MSG.NEXT.ROUTER.other", "$KV.elsewhere.x"),
)


async def test_nobody_of_the_account_reaches_more_of_jetstream_than_is_imported(two_accounts: NatsServer) -> None:
    async with await nats.connect(two_accounts.url, user="anybody", password="anybody") as nc:
        assert (await nc.request(f"{API}.STREAM.INFO.ROUTER", timeout=5)).data
        for request in FOREIGN:
            with pytest.raises(NoRespondersError):
                await nc.request(f"{API}.{request}", b"{}")
        own = json.loads((await nc.request("$JS.API.STREAM.DELETE.ROUTER", timeout=5)).data)
        assert own["error"]["description"] == "JetStream not enabled for account"
