"""`override`: takes effect at once, beside the policy, until its time or `auto`."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from nats.aio.client import Client

from nats_backpressure.adapters.nats import policy_store
from nats_backpressure.protocol.timestamps import parse_rfc3339
from tests.cli.policy_commands import ALL, bucket, source
from tests.support.command import Command
from tests.support.parts import need_server
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually


async def test_an_override_takes_effect_at_once_beside_the_policy_and_can_be_ended(
    command: Command, no_rejections: None, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    await command.good("policy", "set", SUBJECT, "-", data="{retry_after_seconds: 7}")
    output = await command.good("override", SUBJECT, "reject", "--for", "10m")
    assert output.startswith(f"{SUBJECT}: reject until 20") and output.endswith(f"Z; {ALL}\n")
    await source(command, "override", "bucket")
    decision = await command.json("decide", "gateway", SUBJECT)
    assert (decision["action"], decision["retry_after_seconds"]) == ("reject", 7)
    assert "reject until 20" in await command.good("status", SUBJECT)
    await command.good("policy", "set", SUBJECT, "-", data="{retry_after_seconds: 8}")
    assert (await command.json("decide", "gateway", SUBJECT))["action"] == "reject", "a new policy ended the override"
    assert await command.good("override", SUBJECT, "auto") == f"{SUBJECT}: auto; governed 1 of 1 watched subject\n"
    assert await bucket(nc) == {"retry_after_seconds": 8}
    assert await bucket(nc, f"=override.{SUBJECT}") is None
    assert await command.failed("override", SUBJECT, "auto") == f"Error: there is no override for {SUBJECT}\n"


async def test_an_override_also_governs_a_subject_with_its_own_policy(
    command: Command, no_rejections: None, nc: Client, orders: Sidecar
) -> None:
    """D3"""
    await command.good("policy", "set", "orders.created", "-", data="{pending: {overload: 500}}")
    output = await command.good("override", "orders.*", "reject", "--for", "2m")
    assert output.endswith("; governs 3 of 3 watched subjects\n")

    async def refused() -> bool:
        value = [await command.json("decide", "gateway", f"orders.{name}") for name in ("created", "paid")]
        return [each["action"] for each in value] == ["reject"] * 2

    await eventually(refused, "both to be refused")
    output = await command.good("override", "orders.created", "open", "--for", "2m")
    assert output.endswith("; governs 1 of 3 watched subjects\n")
    output = await command.good("override", "orders.*", "reject", "--for", "3m")
    assert output.endswith("; governs 2 of 3 watched subjects; not orders.created (it has its own)\n")
    ran = await command("override", "orders.created", "auto")
    assert ran.exit_code == 0 and "orders.* is overridden (reject until 20" in ran.stderr
    assert "which now governs orders.created" in ran.stderr

    async def governs_all() -> list[str] | None:
        lines = (await command.good("override", "ls")).splitlines()
        return lines if lines[1].endswith("  3 of 3") else None

    listed = await eventually(governs_all, "the wider one to govern all")
    assert listed[1].split()[:2] == ["orders.*", "reject"] and listed[1].endswith("  3 of 3") and len(listed) == 2
    output = await command.failed("override", "orders.paid", "auto")
    assert output.startswith("Error: there is no override for orders.paid; orders.* is overridden (reject until 20")


async def test_without_a_sidecar_an_override_is_written_with_a_note(command: Command, nc: Client) -> None:
    await nc.jetstream().create_key_value(bucket="backpressure_policy")
    ran = await command("override", "a.*", "open", "--for", "1m")
    assert ran.exit_code == 0 and ran.stdout.startswith("a.*: open until 20") and "governs" not in ran.stdout
    assert ran.stderr.startswith(
        "it is not known which subjects this governs: nobody answers under the name `backpressure`"
    )
    assert isinstance(value := await bucket(nc, "=override.a.=2A"), dict) and value["action"] == "open"


async def test_it_lasts_as_long_as_asked_by_the_servers_clock(
    command: Command, nc: Client, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_server(server.version, (2, 10), "the time of a stream")
    await nc.jetstream().create_key_value(bucket="backpressure_policy")
    monkeypatch.setattr(policy_store, "time", SimpleNamespace(time=lambda: 5.0))
    began = datetime.now(UTC).timestamp()
    await command.good("override", "a", "open", "--for", "10m")
    value = await bucket(nc, "=override.a")
    assert isinstance(value, dict)
    assert -1 < (parse_rfc3339(value["until"]) or 0.0) - 600 - began < 60
