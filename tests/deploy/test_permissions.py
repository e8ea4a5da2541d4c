"""deploy/nats/users.conf on a real server: each program does all of its work with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nats_backpressure.adapters.nats.permissions import ROLES as RIGHTS
from nats_backpressure.adapters.nats.permissions import Installation
from nats_backpressure.cli import main
from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.protocol.patterns import covers
from tests.deploy.roles import API, FILE, OURS, ROLES, drain, login, operate
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire


def test_the_file_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["permissions"])
    assert printed.exit_code == 0 and FILE.read_text() == printed.stdout, "run `make docs`"


@pytest.mark.slow
async def test_each_does_all_of_its_work_without_one_violation(
    guarded: NatsServer, replicas: list[Sidecar], command: Command, tmp_path: Path
) -> None:
    gateway, consumer, operator = [await login(guarded, role) for role in ROLES[1:]]
    recording = await command.start("record", str(tmp_path / "recording"))
    wire = Wire(operator)
    await operator.subscribe(f"{OURS}.event.>", cb=wire.take)
    await operator.flush()
    client = BackpressureClient(gateway, report_every=0.1)
    seen: list[str] = []
    await client.on_event(lambda event: seen.append(event["type"]))
    await client.watch([SUBJECT])
    for _ in range(1500):
        await gateway.publish(SUBJECT, b"x")
    await gateway.jetstream().publish(SUBJECT, b"the last one")
    await wire.event("backpressure_warning")
    await client.decide(SUBJECT)
    assert client.admit(SUBJECT).freshness == "known"
    await operate(command)
    await replicas[0].kill()
    await replicas[0].start()
    await replicas[0].observing()
    pulling = await consumer.jetstream().pull_subscribe_bind("router", "ROUTER")
    await drain(PullGate(BackpressureClient(consumer), pulling, SUBJECT))
    await wire.event("recovery")
    assert {"backpressure_warning", "recovery"} <= set(seen)
    assert (await operator.request("$SRV.PING.backpressure")).data
    assert (await wire.ask("validate.policy", {}))["valid"]
    await client.close()
    recording.terminate()
    await recording.wait()
    for each in replicas:
        assert (await each.end())[0] == 0
    for each in (gateway, consumer, operator):
        await each.close()
    assert unused(guarded.log) == RARELY_USED
    as_sidecar = f"nats://sidecar:secret-of-sidecar@127.0.0.1:{guarded.port}"
    examined = await command("doctor", "-o", "json", NATS_URL=as_sidecar)
    findings = json.loads(examined.stdout)["findings"]
    assert {each["check"] for each in findings if each["level"] != "ok"} - {"version"} == {"sampling"}, findings
    assert "Violation" not in guarded.log


def unused(log: str) -> set[str]:
    """The subjects of the file that nobody has published or subscribed to, by the server's trace."""
    used = {kind: set(re.findall(rf"<<- \[H?{kind} (\S+)", log)) for kind in ("PUB", "SUB")}
    listed = [rights(Installation()) for rights in RIGHTS.values()]
    pairs = [("PUB", each) for role in listed for each in role.publish]
    pairs += [("SUB", each) for role in listed for each in role.subscribe]
    return {pattern for kind, pattern in pairs if not any(covers(pattern, subject) for subject in used[kind])}


RARELY_USED = {
    "$JS.API.STREAM.NAMES",  # to name the stream that holds our subjects already
    f"{API}.DIRECT.GET.BACKPRESSURE_EVENTS",  # for more events than are read one by one
    "_R_.>",  # requests of other accounts
    "_INBOX.>",  # requests of clients that set no inbox prefix
    *(f"$SRV.{verb}{tail}" for verb in ("PING", "INFO", "STATS") for tail in ("", ".backpressure", ".backpressure.*")),
} - {"$SRV.PING.backpressure"}
"""What the test does not do: other ways of asking for the service's figures."""
