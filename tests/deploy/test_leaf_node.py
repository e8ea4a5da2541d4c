"""The printed rights in a JetStream domain: all four work on a leaf node, whose hub has the streams, or on the hub."""

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
from tests.deploy.work import everybody_works, findings
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import SUBJECT, Sidecar

DOMAIN = "hub"
API = f"$JS.{DOMAIN}.API"


def printed(where: Path) -> str:
    file = where / "domain.yaml"
    file.write_text(json.dumps({"nats": {"js_domain": DOMAIN}}))
    return CliRunner().invoke(main, ["permissions", "--config", str(file)]).stdout


def in_domain(where: Path, name: str) -> str:
    """The last of two jetstream blocks is in force."""
    return f'jetstream {{ domain: {name}, store_dir: "{where}/{name}" }}\ntrace: true\n'


@pytest.fixture
async def hub(start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """With the router's stream and consumer."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    server = await start_server(in_domain(tmp_path, DOMAIN))
    nc = await nats.connect(server.url)
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    await nc.close()
    return server


async def place_of(kind: str, hub: NatsServer, start_server: StartServer, where: Path) -> NatsServer:
    """The server to which the four connect, with the printed rights."""
    if kind == "hub":
        hub.config += printed(where)
        await hub.restart()
        return hub
    port = free_port()
    hub.config += f'leafnodes {{ listen: "127.0.0.1:{port}" }}\n'
    await hub.restart()
    jetstream = in_domain(where, "leaf") if kind == "leaf with JetStream" else "jetstream: false\ntrace: true\n"
    remotes = f'leafnodes {{ remotes: [ {{ url: "nats-leaf://127.0.0.1:{port}" }} ] }}\n'
    return await start_server(jetstream + remotes + printed(where))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leaf with JetStream", "leaf without JetStream", "hub"])
async def test_each_does_all_of_its_work_in_a_domain_without_one_violation(
    hub: NatsServer, start_server: StartServer, tmp_path: Path, kind: str
) -> None:
    place = await place_of(kind, hub, start_server, tmp_path)
    command = Command(f"nats://operator:secret-of-operator@127.0.0.1:{place.port}", "--js-domain", DOMAIN)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(command.close)
        replicas = [Sidecar(tmp_path, place.url, settings(tmp_path, name, js_domain=DOMAIN)) for name in ("one", "two")]
        for each in replicas:
            await stack.enter_async_context(each)
        for each in replicas:
            await each.observing()
        await everybody_works(place, replicas, command, tmp_path / "recording", API)
    assert (await findings(tmp_path, place, js_domain=DOMAIN)).keys() <= {"sampling", "version", "environment"}
    stored = {path.name for path in (tmp_path / DOMAIN).glob("jetstream/$G/streams/*")}
    assert stored == {"ROUTER", "BACKPRESSURE_EVENTS", "KV_backpressure_state", "KV_backpressure_policy"}
    assert f"$JS.{DOMAIN}.API.STREAM.LIST" in place.log
    assert "Violation" not in place.log + hub.log
