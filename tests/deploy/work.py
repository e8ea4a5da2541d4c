"""The work of each role, with its own login: all that it is there for."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.client import BackpressureClient, PullGate
from tests.deploy.roles import API, OURS, ROLES, login, settings
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually


async def everybody_works(
    server: NatsServer, replicas: list[Sidecar], command: Command, recording: Path, api: str = API
) -> None:
    """A backlog rises and falls; the replicas end with it. `api`: the prefix of the JetStream API."""
    gateway, consumer, operator = [await login(server, role) for role in ROLES[1:]]
    recorder = await command.start("record", str(recording))
    wire = Wire(operator)
    await operator.subscribe(f"{OURS}.event.>", cb=wire.take)
    await operator.flush()
    client = BackpressureClient(gateway, api_prefix=api, report_every=0.1)
    seen: list[str] = []
    await client.on_event(lambda event: seen.append(event["type"]))
    await client.watch([SUBJECT])
    for _ in range(1500):
        await gateway.publish(SUBJECT, b"x")
    await gateway.jetstream(prefix=api).publish(SUBJECT, b"the last one")
    await wire.event("backpressure_warning")
    await client.decide(SUBJECT)

    async def known() -> bool:
        return client.admit(SUBJECT).freshness == "known"

    await eventually(known, "the gateway to know the status")
    await operate(command)
    await replicas[0].kill()
    await replicas[0].start()
    await replicas[0].observing()
    pulling = await consumer.jetstream(prefix=api).pull_subscribe_bind("router", "ROUTER")
    await drain(PullGate(BackpressureClient(consumer), pulling, SUBJECT))
    await wire.event("recovery")
    assert {"backpressure_warning", "recovery"} <= set(seen)
    assert (await operator.request("$SRV.PING.backpressure", timeout=5)).data
    assert (await wire.ask("validate.policy", {}))["valid"]
    await client.close()
    recorder.terminate()
    await recorder.wait()
    for each in replicas:
        assert (await each.end())[0] == 0
    for each in (gateway, consumer, operator):
        await each.close()


async def findings(where: Path, server: NatsServer, **nats: str) -> dict[str, str]:
    """What the doctor finds with the login of the sidecar, by check: all that is not as it should be."""
    file = where / "doctor.yaml"
    file.write_text(json.dumps(settings(where, "doctor", **nats)))
    examined = await Command(server.url)("doctor", "--config", str(file), "-o", "json")
    found = json.loads(examined.stdout)["findings"]
    return {each["check"]: each["problem"] for each in found if each["level"] != "ok"}


async def operate(command: Command) -> None:
    """Every command of an operator."""
    policy = '{"pending": {"overload": 100000}}'
    assert SUBJECT in await command.good("status")
    for arguments in (
        ("status", SUBJECT),
        ("decide", "gateway", SUBJECT),
        ("decide", "consumer", SUBJECT),
        ("events",),
        ("events", SUBJECT),
        ("events", SUBJECT, "--since", "48h"),
        ("override", SUBJECT, "open", "--for", "1m"),
        ("override", SUBJECT, "auto"),
        ("policy", "get", SUBJECT),
        ("policy", "ls"),
        ("override", "ls"),
    ):
        await command.good(*arguments)
    await command.good("policy", "set", SUBJECT, "-", data=policy)
    await command.good("policy", "rm", SUBJECT)
    assert "has consumers" in await command.failed("forget", SUBJECT)


async def drain(gate: PullGate) -> None:
    """Take and acknowledge everything."""
    async with asyncio.timeout(30):
        while (await gate.consumer_info()).num_pending:
            with suppress(NatsTimeoutError):  # while nothing is granted
                for message in await gate.fetch(500, timeout=1):
                    await message.ack()
