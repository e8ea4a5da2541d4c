"""deploy/nats/users.conf on a real server: each program does all of its work with it, and no harm."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.adapters.nats.permissions import ROLES as RIGHTS
from nats_backpressure.adapters.nats.permissions import Installation
from nats_backpressure.cli import main
from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.protocol.patterns import covers
from tests.conftest import StartServer
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, SUBJECT, Sidecar, Wire, eventually

FILE = Path(__file__).resolve().parents[2] / "deploy/nats/users.conf"
API, OURS, STREAM = "$JS.API", "backpressure.v1", "ROUTER"
ROLES = ("sidecar", "gateway", "consumer", "operator")


def test_the_file_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["permissions"])
    assert printed.exit_code == 0 and FILE.read_text() == printed.stdout, "run `make docs`"


@pytest.fixture
async def guarded(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """A server on which a router's stream and consumer exist, and then exactly the users of the file."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    server = await start_server()
    nc = await nats.connect(server.url)
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    await nc.close()
    server.config = f"{FILE.read_text()}\ntrace: true\n"
    await server.restart()
    return server


async def login(server: NatsServer, role: str, errors: list[str] | None = None) -> Client:
    async def note(error: Exception) -> None:
        if errors is not None:
            errors.append(str(error))

    return await nats.connect(server.url, user=role, password=f"secret-of-{role}", error_cb=note)


def settings(where: Path, name: str) -> dict[str, Any]:
    secret = where / "password"
    secret.write_text("secret-of-sidecar")
    return QUICK | {"instance": name, "nats": {"user": "sidecar", "password_file": str(secret)}}


@pytest.fixture
async def command(guarded: NatsServer) -> AsyncIterator[Command]:
    command = Command(f"nats://operator:secret-of-operator@127.0.0.1:{guarded.port}")
    yield command
    await command.close()


@pytest.fixture
async def replicas(guarded: NatsServer, tmp_path: Path) -> AsyncIterator[list[Sidecar]]:
    async with AsyncExitStack() as stack:
        both = [Sidecar(tmp_path, guarded.url, settings(tmp_path, name)) for name in ("one", "two")]
        for each in both:
            await stack.enter_async_context(each)
        for each in both:
            await each.observing()
        yield both


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
    *(f"$SRV.{verb}{tail}" for verb in ("PING", "INFO", "STATS") for tail in ("", ".backpressure", ".backpressure.*")),
} - {"$SRV.PING.backpressure"}
"""What the test does not do: other ways of asking for the service's figures."""


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


HARM = {
    "delete a consumer": (f"{API}.CONSUMER.DELETE.{STREAM}.router", ROLES),
    "create a consumer": (f"{API}.CONSUMER.CREATE.{STREAM}.x", ROLES),
    "create a durable": (f"{API}.CONSUMER.DURABLE.CREATE.{STREAM}.x", ROLES),
    "pause a consumer": (f"{API}.CONSUMER.PAUSE.{STREAM}.router", ROLES),
    "read a watched message": (f"{API}.STREAM.MSG.GET.{STREAM}", ROLES),
    "read one directly": (f"{API}.DIRECT.GET.{STREAM}", ROLES),
    "take messages": (f"{API}.CONSUMER.MSG.NEXT.{STREAM}.router", ("sidecar", "gateway", "operator")),
    "acknowledge for others": (f"$JS.ACK.{STREAM}.router.1.1.1.1.0", ("sidecar", "gateway", "operator")),
    "delete a stream": (f"{API}.STREAM.DELETE.{STREAM}", ROLES),
    "purge a stream": (f"{API}.STREAM.PURGE.{STREAM}", ROLES),
    "delete the states": (f"{API}.STREAM.DELETE.KV_backpressure_state", ROLES),
    "publish work": (SUBJECT, ("sidecar", "consumer", "operator")),
    "publish an event": (f"{OURS}.event.recovery.{SUBJECT}", ("gateway", "consumer", "operator")),
    "write a state": (f"$KV.backpressure_state.{SUBJECT}", ("gateway", "consumer", "operator")),
    "write a policy": (f"$KV.backpressure_policy.{SUBJECT}", ("sidecar", "gateway", "consumer")),
    "have states delivered elsewhere": (
        f"{API}.CONSUMER.CREATE.KV_backpressure_state.x",
        ("gateway", "consumer", "operator"),
    ),
    "the same with a filter": (
        f"{API}.CONSUMER.CREATE.KV_backpressure_state.x.$KV.backpressure_state.>",
        ROLES,
    ),
    "answer in our name": ("_INBOX.somebody.1", ("gateway", "consumer", "operator")),
    "send readings": (f"{OURS}.internal.presence", ("gateway", "consumer", "operator")),
    "forge an ack metric": (f"$JS.EVENT.METRIC.CONSUMER.ACK.{STREAM}.router", ROLES),
    "forge an advisory": (f"$JS.EVENT.ADVISORY.CONSUMER.DELETED.{STREAM}.router", ROLES),
    "forget a subject": (f"{OURS}.forget.{SUBJECT}", ("sidecar", "gateway", "consumer")),
    "forge a report": (f"{OURS}.report.gateway.{SUBJECT}", ("sidecar", "consumer", "operator")),
}
LISTENING = {
    "take requests": (f"{OURS}.decide.gateway.>", ("gateway", "consumer", "operator")),
    "read work": (SUBJECT, ROLES),
    "read policies": ("$KV.backpressure_policy.>", ROLES),
    "read everything": (">", ROLES),
}


async def test_every_harm_is_denied(guarded: NatsServer) -> None:
    allowed: list[tuple[str, str]] = []
    for role in ROLES:
        errors: list[str] = []
        nc = await login(guarded, role, errors)
        for what, (subject, roles) in HARM.items():
            if role in roles:
                await nc.publish(subject, b"{}")
                await settled(nc)
                if not any(f'publish to "{subject.lower()}"' in error for error in errors):
                    allowed.append((role, what))
        for what, (subject, roles) in LISTENING.items():
            if role in roles:
                await nc.subscribe(subject)
                await settled(nc)
                if not any(f'subscription to "{subject.lower()}"' in error for error in errors):
                    allowed.append((role, what))
        await nc.close()
    assert allowed == []


async def test_an_operator_can_have_policies_copied_into_a_watched_stream(guarded: NatsServer) -> None:
    """What docs/operations.md says that no rights prevent: where this fails, that part of the page can go."""
    sidecar, operator = await login(guarded, "sidecar"), await login(guarded, "operator")
    bucket = {"name": "KV_backpressure_policy", "subjects": ["$KV.backpressure_policy.>"]}
    await sidecar.request(f"{API}.STREAM.CREATE.KV_backpressure_policy", json.dumps(bucket).encode())
    config = {"durable_name": "copy", "name": "copy", "ack_policy": "none", "deliver_subject": SUBJECT}
    request = json.dumps({"stream_name": "KV_backpressure_policy", "config": config}).encode()
    made = await operator.request(f"{API}.CONSUMER.CREATE.KV_backpressure_policy.copy", request)
    assert json.loads(made.data)["config"]["deliver_subject"] == SUBJECT
    await operator.publish("$KV.backpressure_policy.x", b"of my choice")

    async def copied() -> bool:
        reply = await sidecar.request(f"{API}.STREAM.INFO.{STREAM}", b'{"subjects_filter": ">"}')
        return json.loads(reply.data)["state"].get("subjects") == {"$KV.backpressure_policy.x": 1}

    await eventually(copied, "the policy to be stored in the watched stream")
    assert "Violation" not in guarded.log
    await operator.close()
    await sidecar.close()


@pytest.mark.slow
async def test_a_foreign_reply_subject_gets_no_answer(guarded: NatsServer, replicas: list[Sidecar]) -> None:
    gateway, operator = await login(guarded, "gateway"), await login(guarded, "operator")
    for reply in (f"{API}.STREAM.DELETE.{STREAM}", SUBJECT, f"{OURS}.event.recovery.x", "$KV.backpressure_policy.x"):
        await gateway.publish(f"{OURS}.decide.gateway.{SUBJECT}", b"{}", reply=reply)
    await gateway.flush()

    async def dropped() -> bool:
        pages = [(await each.get("/metrics"))[1] for each in replicas]
        lines = [line for page in pages for line in page.splitlines() if 'what="reply_subject"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines) == 4

    await eventually(dropped, "the four requests to be dropped")
    assert (await Wire(operator).ask(f"get.status.{SUBJECT}"))["metrics"]["pending_messages"] == 0
    assert "Violation" not in guarded.log
    await gateway.close()
    await operator.close()
