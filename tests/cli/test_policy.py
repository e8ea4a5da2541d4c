"""`policy` and `override`: changed through the bucket, refused before or put back after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError

from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, SUBJECT, Sidecar, Wire, eventually

GUARDED = QUICK | {"policy_guard": {"max_pending_overload": 5000}}


@pytest.fixture
async def guarded(tmp_path: Path, server: NatsServer, router: None) -> AsyncIterator[Sidecar]:
    async with Sidecar(tmp_path, server.url, GUARDED) as process:
        await process.observing()
        yield process


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which nothing is refused: nobody waits to hear that it is."""
    monkeypatch.setattr("nats_backpressure.cli.policy_bucket.REJECTION_WITHIN", 0.05)


UNKNOWN_SUBJECTS = "it is not known which subjects this governs:"
ALL = "governs 1 of 1 watched subject"


async def bucket(nc: Client, key: str = SUBJECT) -> object:
    try:
        found = await (await nc.jetstream().key_value("backpressure_policy")).get(key)
    except KeyNotFoundError:
        return None
    return msgspec.json.decode(found.value or b"")


async def source(command: Command, field: str, wanted: str) -> str:
    """What `policy get` prints of a field, once it comes from there."""

    async def look() -> str | None:
        lines = (await command.good("policy", "get", SUBJECT)).splitlines()
        return next((line for line in lines if line.startswith(field) and line.endswith(wanted)), None)

    found: str = await eventually(look, f"{field} from {wanted}")
    return found


async def test_a_policy_is_set_shown_with_its_source_and_taken_out(
    command: Command, hasty: None, nc: Client, guarded: Sidecar, wire: Wire, tmp_path: Path
) -> None:
    await wire.status(status="inactive")
    file = tmp_path / "policy.yaml"
    file.write_text("retry_after_seconds: 7\n")
    assert await command.good("policy", "set", SUBJECT, file) == f"{SUBJECT}: stored as revision 1; {ALL}\n"
    assert "7" in (await source(command, "retry_after_seconds", "bucket")).split()
    assert (await command.json("policy", "get", SUBJECT))["sources"]["max_retry_attempts"] == "default"
    said = await command.failed("policy", "set", "beamline.*.>", "-", data="{mode: observe}")
    assert f"it governs none of the watched subjects that it covers: {SUBJECT} (it has its own). Use --force" in said
    assert await command.good("policy", "set", "beamline.*.>", "-", "--force", data="{mode: observe}")
    assert await bucket(nc, "beamline.=2A.=3E") == {"mode": "observe"}
    assert await command.good("policy", "rm", SUBJECT) == f"{SUBJECT}: removed; governed 1 of 1 watched subject\n"
    await source(command, "retry_after_seconds", "default")
    assert await command.failed("policy", "rm", SUBJECT) == f"Error: the bucket has no policy for {SUBJECT}\n"


async def test_a_policy_the_sidecars_guard_refuses_is_told_and_the_bucket_is_as_it_was(
    command: Command, nc: Client, guarded: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    for before in (None, {"retry_after_seconds": 7}):
        if before:
            await command.good("policy", "set", SUBJECT, "-", data=msgspec.json.encode(before).decode())
        said = await command.failed("policy", "set", SUBJECT, "-", data="{pending: {overload: 6000}}")
        assert said == (
            "the sidecar rejects it: pending.overload: must be at most 5,000 "
            "(policy_guard.max_pending_overload), is 6,000\n"
        )
        assert await bucket(nc) == before


BAD = "retry_after_seconds: 5\npending:\n  warn: 50\n  critical: 5\nretry_after: 5\n"


async def test_a_mistake_in_a_file_is_told_by_line_before_anything_is_asked(tmp_path: Path) -> None:
    command, file = Command("nats://127.0.0.1:1"), tmp_path / "policy.yaml"
    file.write_text(BAD)
    said = await command.failed("policy", "set", "a", file)
    assert sorted(said.splitlines()) == [
        f"{file}:3: pending.warn: must not be above critical, 50 is above 5",
        f"{file}:5: retry_after: unknown key",
    ]
    assert "pattern is given on the command line" in await command.failed(
        "policy", "set", "a", "-", data="subjects: [a]"
    )
    assert "must be a mapping" in await command.failed("policy", "set", "a", "-", data="[]")
    assert "is not YAML" in await command.failed("policy", "set", "a", "-", data="a: b: c")
    missing = await command.failed("policy", "set", "a", tmp_path / "none")
    assert missing == f"Error: {tmp_path}/none: cannot be read: no such file or directory\n"


async def test_without_a_bucket_it_says_who_makes_it(command: Command) -> None:
    said = await command.failed("policy", "rm", "a")
    assert said == "Error: there is no bucket backpressure_policy: a sidecar of that name creates it when it starts\n"


async def test_an_override_is_in_force_at_once_beside_the_policy_and_can_be_ended(
    command: Command, hasty: None, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    await command.good("policy", "set", SUBJECT, "-", data="{retry_after_seconds: 7}")
    said = await command.good("override", SUBJECT, "reject", "--for", "10m")
    assert said.startswith(f"{SUBJECT}: reject until 20") and said.endswith(f"Z; {ALL}\n")
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


async def test_what_others_left_unreadable_in_the_bucket_can_be_taken_out(command: Command, nc: Client) -> None:
    await (await nc.jetstream().create_key_value(bucket="backpressure_policy")).put(SUBJECT, b"{nonsense")
    ran = await command("policy", "rm", SUBJECT)
    assert (ran.exit_code, ran.stdout) == (0, f"{SUBJECT}: removed\n")
    assert ran.stderr.startswith(
        "it is not known which subjects this governs: nobody answers under the name `backpressure` at"
    )


@pytest.fixture
async def orders(nc: Client, server: NatsServer, tmp_path: Path) -> AsyncIterator[Sidecar]:
    """operations.md: three subjects of one stream, and an audit durable that reads them all."""
    await nc.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    for name in ("created", "paid", "shipped"):
        own = CONSUMER.evolve(durable_name=f"router-{name}", filter_subject=f"orders.{name}")
        await nc.jetstream().add_consumer("ORDERS", own)
    async with Sidecar(tmp_path, server.url, QUICK) as process:
        await process.observing()
        yield process


async def test_an_override_reaches_a_subject_with_its_own_policy_and_says_so(
    command: Command, hasty: None, nc: Client, orders: Sidecar
) -> None:
    """D3"""
    await command.good("policy", "set", "orders.created", "-", data="{pending: {overload: 500}}")
    said = await command.good("override", "orders.*", "reject", "--for", "2m")
    assert said.endswith("; governs 3 of 3 watched subjects\n")

    async def refused() -> bool:
        found = [await command.json("decide", "gateway", f"orders.{name}") for name in ("created", "paid")]
        return [each["action"] for each in found] == ["reject"] * 2

    await eventually(refused, "both to be refused")
    said = await command.good("override", "orders.created", "open", "--for", "2m")
    assert said.endswith("; governs 1 of 3 watched subjects\n")
    said = await command.good("override", "orders.*", "reject", "--for", "3m")
    assert said.endswith("; governs 2 of 3 watched subjects; not orders.created (it has its own)\n")
    ran = await command("override", "orders.created", "auto")
    assert ran.exit_code == 0 and "orders.* is overridden (reject until 20" in ran.stderr
    assert "which now governs orders.created" in ran.stderr
    said = await command.failed("override", "orders.paid", "auto")
    assert said.startswith("Error: there is no override for orders.paid; orders.* is overridden (reject until 20")


async def test_what_governs_nothing_is_refused_unless_it_is_forced(
    command: Command, hasty: None, nc: Client, orders: Sidecar
) -> None:
    """D4"""
    said = await command.failed("override", "ordres.created", "open", "--for", "1m")
    assert said == (
        "Error: ordres.created: nothing was changed, because it covers none of the 3 watched subjects: "
        "orders.created, orders.paid, orders.shipped (did you mean orders.created?). Use --force to change it anyway\n"
    )
    assert "covers none" in await command.failed("policy", "set", "no.such.subject", "-", data="{mode: observe}")
    assert await bucket(nc, "=override.ordres.created") is None and await bucket(nc, "no.such.subject") is None
    said = await command.good("policy", "set", "no.such.subject", "-", "--force", data="{mode: observe}")
    assert said == "no.such.subject: stored as revision 1; governs 0 of 3 watched subjects\n"
    assert "covers none" in await command.failed("policy", "rm", "no.such.subject")
    await command.good("policy", "rm", "no.such.subject", "--force")
    said = await command.failed("policy", "set", "orders.*", "-", data="{mode: observe, consumers: [audit]}")
    assert "orders.created (the policy names none of its consumers), orders.paid" in said


async def test_an_open_override_says_which_watched_pattern_may_still_refuse(
    command: Command, hasty: None, nc: Client, orders: Sidecar, wire: Wire
) -> None:
    audit = CONSUMER.evolve(durable_name="audit", filter_subject="orders.>")
    await nc.jetstream().add_consumer("ORDERS", audit)
    await wire.status("orders.=3E", status="inactive")
    ran = await command("override", "orders.paid", "open", "--for", "1m")
    assert ran.exit_code == 0 and ran.stderr == (
        "orders.> is watched too, covers orders.paid and is not overridden:"
        " when it rejects, orders.paid is rejected too\n"
    )


async def test_without_a_sidecar_an_override_is_put_and_says_what_is_not_known(command: Command, nc: Client) -> None:
    await nc.jetstream().create_key_value(bucket="backpressure_policy")
    ran = await command("override", "a.*", "open", "--for", "1m")
    assert ran.exit_code == 0 and ran.stdout.startswith("a.*: open until 20") and "governs" not in ran.stdout
    assert ran.stderr.startswith(
        "it is not known which subjects this governs: nobody answers under the name `backpressure`"
    )
    assert isinstance(found := await bucket(nc, "=override.a.=2A"), dict) and found["action"] == "open"
