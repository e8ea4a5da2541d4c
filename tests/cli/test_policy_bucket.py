"""A change of the policy bucket is undone if a sidecar rejects it."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.policy.refusals import IGNORED
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.protocol.timestamps import format_rfc3339
from tests.cli.policy_commands import bucket
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually


async def test_a_policy_that_the_guard_rejects_is_reported_and_the_bucket_is_unchanged(
    command: Command, nc: Client, guarded: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    for before in (None, {"retry_after_seconds": 7}):
        if before:
            await command.good("policy", "set", SUBJECT, "-", data=msgspec.json.encode(before).decode())
        tried = await command.failed("policy", "set", SUBJECT, "-", "--dry-run", data="{pending: {overload: 6000}}")
        output = await command.failed("policy", "set", SUBJECT, "-", data="{pending: {overload: 6000}}")
        assert tried.splitlines()[-1] == output.splitlines()[-1]
        assert output.endswith(
            "the sidecar would reject it: pending.overload: must be at most 5,000 "
            "(policy_guard.max_pending_overload), is 6,000\n"
        )
        assert await bucket(nc) == before


async def test_what_the_guard_refuses_is_listed_as_not_applied(
    command: Command, nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    """The guard was made stricter after it was stored, or it was put there by hand."""
    guard = {"max_pending_overload": 5000, "override_actions": ["reject"]}
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policy_guard": guard}) as process:
        await process.observing()
        kv = await nc.jetstream().key_value("backpressure_policy")
        until = format_rfc3339(time.time() + 600)
        values = {"good": b'{"retry_after_seconds":7}', "bad": b'{"pending":{"overload":6000}}'}
        for value, state in (("good", "in force"), ("bad", "not applied")):
            await kv.put(SUBJECT, values[value])
            await kv.put(
                f"=override.{SUBJECT}",
                msgspec.json.encode({"action": {"good": "reject", "bad": "open"}[value], "until": until}),
            )
            governs = [SUBJECT] if value == "good" else []

            async def shown(state: str = state, governs: list[str] = governs) -> bool:
                policy, override = [
                    (await command.json(kind, "ls"))[name][0]
                    for kind, name in (("policy", "policies"), ("override", "overrides"))
                ]
                both = [(each["state"], each["governs"]) for each in (policy, override)]
                return both == [(state, governs)] * 2

            await eventually(shown, f"both to be {state}")
        ran = await command("override", "ls")
        assert ran.stderr.startswith(f"not applied, though stored: {SUBJECT}. A sidecar refuses them"), ran.stderr
        ran = await command("policy", "ls")
        assert "(policy_guard.max_pending_overload), is 6,000. In force instead for " in ran.stderr
        await kv.put(SUBJECT, b'{"pendnig":1}')
        ran = await command("policy", "ls")
        assert f"{SUBJECT}: refused: has no field that this version knows; pendnig: unknown key. " in ran.stderr
        assert f"In force instead for {SUBJECT}: a value of the bucket" in ran.stderr
        assert "refused" in ran.stdout and "?" in ran.stdout


def rejected(mark: str, message: str = "must be a number") -> bytes:
    fields: dict[str, object] = {
        "id": "x",
        "type": "policy_rejected",
        "subject": SUBJECT,
        "timestamp": "2026-01-01T00:00:00.000Z",
    }
    fields |= {"policy_revision": mark}
    fields |= {"epoch": "e", "from": "inactive", "to": "inactive", "instance": "r", "version": "1"}
    fields |= {"incident": None, "reasons": [], "diagnosis": None, "pressure": None, "metrics": {}, "thresholds": None}
    numbers = {"seq": 1, "retry_after_seconds": 0, "admit_ratio": 1}
    event = fields | numbers | {"errors": [{"path": "pending", "message": message}]}
    return msgspec.json.encode(event)


@pytest.mark.parametrize(
    ("kind", "value"), [("policy", b'{"mode":"observe"}'), ("override", b'{"action":"open","until":"2020"}')]
)
@pytest.mark.parametrize(
    ("published", "is_undone"),
    [
        ([rejected("14376e7bbe19bf87")], False),
        ([rejected("2026-11-27:1")], False),
        ([rejected("2026-11-27:12")], False),
        ([b"{", b"[]"], False),
        ([rejected("2026-11-27:2", IGNORED)], False),
        ([rejected("2026-11-27:2")], True),
        ([rejected("2026-11-27:2:unread")], True),
        ([b"{", rejected("14376e7bbe19bf87"), rejected("2026-11-27:2")], True),
    ],
    ids=["of metadata", "of the value before", "another number", "no events", "in part", "its own", "no room", "last"],
)
async def test_only_a_rejection_of_what_was_stored_undoes_it(
    command: Command, nc: Client, kind: str, value: bytes, published: list[bytes], is_undone: bool
) -> None:
    kv = await nc.jetstream().create_key_value(bucket="backpressure_policy")
    key = SUBJECT if kind == "policy" else f"=override.{SUBJECT}"
    tail = encode(key if kind == "policy" else f"=override.{SUBJECT}")
    await kv.put(key, value)

    async def answer(message: Msg) -> None:
        for event in published:
            await nc.publish(f"backpressure.v1.event.policy_rejected.{tail}", event)
        await stored.unsubscribe()

    stored = await nc.subscribe(f"$KV.backpressure_policy.{key}", cb=answer)
    await nc.flush()
    if kind == "policy":
        ran = await command("policy", "set", SUBJECT, "-", data="{mode: enforce}")
    else:
        ran = await command("override", SUBJECT, "reject", "--for", "10m")
    assert ran.exit_code == is_undone, ran.stderr
    assert ("the sidecar rejects it: pending: must be a number" in ran.stderr) is is_undone
    assert ("a sidecar of an older version knows only a part" in ran.stderr) is (IGNORED in str(published))
    assert (await bucket(nc, key) == msgspec.json.decode(value)) is is_undone


async def test_without_a_bucket_the_error_says_who_creates_it(command: Command) -> None:
    output = await command.failed("policy", "rm", "a")
    assert output == "Error: there is no bucket backpressure_policy: a sidecar of that name creates it when it starts\n"


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("value", [b"{nonsense", b'{"pending":{"warn":-1}}', b'{"mode":"observe"}', b"\xff"])
async def test_what_the_doctor_says_removes_each_entry_that_governs_nothing(
    command: Command, nc: Client, sidecar: Sidecar, watched: bool, value: bytes
) -> None:
    kv, pattern = await nc.jetstream().key_value("backpressure_policy"), SUBJECT if watched else "orders.zz"
    await kv.put(pattern, value)
    await kv.put(f"=override.{pattern}", value)
    assert (await command.good("policy", "rm", pattern)).startswith(f"{pattern}: removed; governed ")
    assert (await command.good("override", pattern, "auto")).startswith(f"{pattern}: auto; governed 0 of 1")
    assert await bucket(nc, pattern) is None and await bucket(nc, f"=override.{pattern}") is None


async def test_an_unreadable_value_in_the_bucket_can_be_removed(command: Command, nc: Client) -> None:
    await (await nc.jetstream().create_key_value(bucket="backpressure_policy")).put(SUBJECT, b"{nonsense")
    ran = await command("policy", "rm", SUBJECT)
    assert (ran.exit_code, ran.stdout) == (0, f"{SUBJECT}: removed\n")
    assert ran.stderr.startswith(
        "it is not known which subjects this governs: nobody answers under the name `backpressure` at"
    )
