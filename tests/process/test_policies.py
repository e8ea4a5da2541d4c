"""Policies that change while the sidecar runs, seen only over the wire."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.kv import KeyValue

from tests.process.waits import SLACK
from tests.support.background import meanwhile
from tests.support.router import override, publish, work
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

WITHIN = 1.0 + SLACK
"""Seconds within which a stored policy is in force: 1 by the contract, and some for a busy machine."""


async def policies(nc: Client) -> KeyValue:
    return await nc.jetstream().key_value("backpressure_policy")


async def put(nc: Client, key: str, policy: dict[str, Any]) -> float:
    """When it was stored."""
    await (await policies(nc)).put(key, json.dumps(policy).encode())
    return time.monotonic()


async def rejected(wire: Wire, key: str) -> dict[str, Any]:
    async def events() -> dict[str, Any] | None:
        result = [e for e in wire.live if (e["type"], e["subject"]) == ("policy_rejected", key)]
        return result[-1] if result else None

    result: dict[str, Any] = await eventually(events, f"policy_rejected for {key}")
    return result


class TestPoliciesInTheBucket:
    async def test_a_stored_policy_takes_effect_within_a_second_and_so_does_its_removal(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await publish(nc, 500)
        await wire.status(status="inactive")
        stored = await put(nc, SUBJECT, {"pending": {"warn": 1, "critical": 2, "overload": 40}, "active_signals": 1})
        status = await wire.status(status="active")
        assert time.monotonic() - stored < WITHIN
        assert status["thresholds"]["queue_overload"] == 40
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["action"] == "reject"
        policy = await wire.ask(f"get.policy.{SUBJECT}")
        assert (policy["policy"]["pending"]["overload"], policy["sources"]["pending.overload"]) == (40, "bucket")
        assert policy["sources"]["retry_after_seconds"] == "default"
        await (await policies(nc)).delete(SUBJECT)
        await wire.status(status="inactive")
        assert (await wire.ask(f"get.policy.{SUBJECT}"))["sources"]["pending.overload"] == "default"

    async def test_a_pattern_governs_all_it_covers_unless_a_more_specific_one_does(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await wire.status(status="inactive")
        await put(nc, "beamline.=3E", {"retry_after_seconds": 7})
        await wire.status(policy=await _effective(wire, "retry_after_seconds", 7))
        await put(nc, "beamline.=2A.v1.decide", {"retry_after_seconds": 9})
        await wire.status(policy=await _effective(wire, "retry_after_seconds", 9))

    async def test_an_invalid_policy_is_rejected_with_its_path_and_the_last_good_one_stays(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await wire.status(status="inactive")
        await put(nc, SUBJECT, {"retry_after_seconds": 7})
        await _effective(wire, "retry_after_seconds", 7)
        await put(nc, SUBJECT, {"retry_after_seconds": 8, "pending": {"warn": 5, "critical": 1}, "nonsense": 1})
        event = await rejected(wire, SUBJECT)
        assert {"pending.warn", "nonsense"} <= {error["path"] for error in event["errors"]}
        assert await wire.ask(f"get.policy.{SUBJECT}") == await _asked(wire, "retry_after_seconds", 7)
        assert wire.live == await wire.stored()

    async def test_an_invalid_policy_for_an_unwatched_pattern_is_rejected_once_across_a_restart(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await wire.status(status="inactive")
        await put(nc, "no.=3E", {"pending": {"overload": -1}})
        assert (await rejected(wire, "no.>"))["errors"][0]["path"] == "pending.overload"
        await sidecar.kill()
        await sidecar.start()
        await sidecar.observing()
        await put(nc, "other.=3E", {"nonsense": 1})
        await rejected(wire, "other.>")
        assert [e["subject"] for e in await wire.stored()] == ["no.>", "other.>"]

    async def test_a_deleted_and_recreated_bucket_is_followed(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        await wire.status(status="inactive")
        await put(nc, SUBJECT, {"retry_after_seconds": 7})
        await _effective(wire, "retry_after_seconds", 7)
        await nc.jetstream().delete_stream("KV_backpressure_policy")
        await _effective(wire, "retry_after_seconds", 30)

        async def there() -> bool:
            with suppress(Exception):
                return bool(await put(nc, SUBJECT, {"retry_after_seconds": 8}))
            return False

        await eventually(there, "the bucket created again")
        await _effective(wire, "retry_after_seconds", 8)

    async def test_the_guard_of_the_file_limits_the_bucket(
        self, nc: Client, server: NatsServer, router: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        async with Sidecar(
            tmp_path, server.url, UNHURRIED | {"policy_guard": {"max_pending_overload": 5000}}
        ) as process:
            await process.observing()
            await put(nc, SUBJECT, {"pending": {"overload": 6000}})
            assert (await rejected(wire, SUBJECT))["errors"][0]["path"] == "pending.overload"


async def _asked(wire: Wire, field: str, value: object) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        result = await wire.ask(f"get.policy.{SUBJECT}")
        return result if result["policy"][field] == value else None

    result: dict[str, Any] = await eventually(look, f"{field} of {value}")
    return result


async def _effective(wire: Wire, field: str, value: object) -> dict[str, Any]:
    """The policy in force once a field of it has that value."""
    policy: dict[str, Any] = (await _asked(wire, field, value))["policy"]
    return policy


class TestOverrides:
    async def test_an_override_is_above_everything_until_it_expires(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await wire.status(status="inactive")
        put_ = await override(nc, SUBJECT, "reject", 60)
        status = await wire.status(override=put_)
        assert status["status"] == "inactive"
        decision = await wire.ask(f"decide.gateway.{SUBJECT}")
        assert (decision["action"], decision["retry_after_seconds"]) == ("reject", 30)
        assert "override" in decision["reasons"]
        assert (await wire.ask(f"decide.gateway.{SUBJECT}", {"priority": "critical"}))["action"] == "continue"
        policy = await wire.ask(f"get.policy.{SUBJECT}")
        assert (policy["policy"]["override"], policy["sources"]["override"]) == (put_, "bucket")

        async def stored() -> bool:
            return (await wire.state())["action"] == "reject"

        await eventually(stored, "the state to say so")
        await override(nc, SUBJECT, "reject", 2)
        await wire.status(override=None)
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["action"] == "continue"

        async def over() -> bool:
            result = await wire.ask(f"get.policy.{SUBJECT}")
            return (result["policy"]["override"], result["sources"]["override"]) == (None, "default")

        await eventually(over, "the policy without it")

    async def test_a_wide_override_also_governs_a_subject_with_its_own_policy(
        self, nc: Client, server: NatsServer, tmp_path: Path
    ) -> None:
        """operations.md D3: the subject that somebody tuned went on rejecting."""
        async with three_subjects(nc, server, tmp_path, {"policies": [ALONE]}) as wire:
            await put(nc, "orders.created", {"pending": {"overload": 500}, "active_signals": 1})
            for name in ("orders.created", "orders.paid"):
                await wire.status(name, status="active")
            put_ = await override(nc, "orders.*", "open", 60)
            for name in ("orders.created", "orders.paid", "orders.shipped"):
                status = await wire.status(name, override=put_)
                assert (await wire.ask(f"decide.gateway.{name}"))["action"] == "continue"
                assert "override" in status["reasons"]
            assert (await wire.ask("get.policy.orders.created"))["policy"]["pending"]["overload"] == 500
            await (await policies(nc)).delete("=override.orders.=2A")
            await wire.status("orders.created", override=None, status="active")
            assert (await wire.ask("decide.gateway.orders.created"))["action"] == "reject"

    async def test_the_most_specific_override_decides_until_it_ends(
        self, nc: Client, server: NatsServer, tmp_path: Path
    ) -> None:
        async with three_subjects(nc, server, tmp_path) as wire:
            wide = await override(nc, "orders.>", "reject", 60)
            near = await override(nc, "orders.created", "open", 6)
            await wire.status("orders.created", override=near)
            await wire.status("orders.paid", override=wide)
            actions = [(await wire.ask(f"decide.gateway.orders.{name}"))["action"] for name in ("created", "paid")]
            assert actions == ["continue", "reject"]
            status = await wire.status("orders.created", override=wide)
            assert "override" in status["reasons"]
            assert (await wire.ask("decide.gateway.orders.created"))["action"] == "reject"

            async def stored() -> bool:
                return (await wire.state("orders.created"))["override"] == wide

            await eventually(stored, "the state to say so")

    async def test_an_override_is_above_a_dry_run_and_an_admit_ratio(
        self, nc: Client, server: NatsServer, tmp_path: Path
    ) -> None:
        modes = [
            {"subjects": ["orders.created"], "mode": "observe"},
            {"subjects": ["orders.paid"], "admission": {"mode": "adaptive"}},
        ]
        async with three_subjects(nc, server, tmp_path, {"policies": modes}) as wire:
            for action, expected in (("reject", ("reject", 0.0)), ("open", ("continue", 1.0))):
                put_ = await override(nc, ">", action, 60)
                for name in ("created", "paid"):
                    await wire.status(f"orders.{name}", override=put_)
                    result = await wire.ask(f"decide.gateway.orders.{name}")
                    assert (result["action"], result["admit_ratio"], result["would"]) == (*expected, None)

    async def test_events_name_an_override_and_it_survives_a_restart(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        put_ = await override(nc, "beamline.>", "open", 60)
        await wire.status(override=put_)
        await publish(nc, 1500)
        event = await wire.event("backpressure_warning")
        assert event["override"] == put_ and event["reasons"][-1] == "override"
        await sidecar.kill()
        await sidecar.start()
        await sidecar.observing()
        assert (await wire.status())["override"] == put_

    async def test_an_invalid_override_is_rejected_and_the_last_good_one_stays(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        good = await override(nc, SUBJECT, "reject", 60)
        await wire.status(override=good)
        await override(nc, SUBJECT, "open", 8 * 86_400)
        event = await rejected(wire, f"=override.{SUBJECT}")
        assert event["errors"] == [
            {
                "path": "until",
                "message": "must be at most 7 days ahead, is 8.0 days; give a shorter time, then renew it",
            }
        ]
        assert (await wire.status())["override"] == good
        await put(nc, SUBJECT, {"override": good})
        event = await rejected(wire, SUBJECT)
        assert [error["path"] for error in event["errors"]] == ["override"]
        assert "nats-backpressure override SUBJECT" in event["errors"][0]["message"]


ALONE = {"subjects": [">"], "active_signals": 1}


@asynccontextmanager
async def three_subjects(
    nc: Client, server: NatsServer, tmp_path: Path, config: dict[str, Any] | None = None
) -> AsyncIterator[Wire]:
    """Three consumers of one stream, two of them with 1,500 messages waiting."""
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    for name in ("created", "paid", "shipped"):
        filtered = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, filter_subject=f"orders.{name}")
        await js.add_consumer("ORDERS", filtered.evolve(durable_name=f"router-{name}"))
    for name in ("created", "paid"):
        for _ in range(1499):
            await nc.publish(f"orders.{name}", b"x")
        await js.publish(f"orders.{name}", b"x")
    async with Sidecar(tmp_path, server.url, UNHURRIED | (config or {})) as process:
        await process.observing()
        yield await Wire(nc).listen()


async def test_sighup_loads_a_changed_file_and_reports_an_invalid_one(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    wire = await Wire(nc).listen()
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        assert process.process is not None
        process.configure(UNHURRIED | {"policies": [{"subjects": [">"], "retry_after_seconds": 7}]})
        process.process.send_signal(signal.SIGHUP)
        policy = await _asked(wire, "retry_after_seconds", 7)
        assert policy["sources"]["retry_after_seconds"] == "file"
        process.configure(UNHURRIED | {"policies": [{"subjects": [">"], "retry_after_seconds": -7}]})
        process.process.send_signal(signal.SIGHUP)
        event = await rejected(wire, "_file")
        assert event["errors"][0]["path"] == "policies[0].retry_after_seconds"
        await _effective(wire, "retry_after_seconds", 7)


async def test_a_changed_login_whose_file_is_missing_is_a_mistake_of_the_file(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    wire = await Wire(nc).listen()
    login = {"user": "u", "password_file": str(tmp_path / "password")}
    changed = UNHURRIED | {"policies": [{"subjects": [">"], "retry_after_seconds": 7}], "nats": login}
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        assert process.process is not None
        process.configure(changed)
        process.process.send_signal(signal.SIGHUP)
        (error,) = (await rejected(wire, "_file"))["errors"]
        assert error["path"] == "nats" and login["password_file"] in error["message"]
        assert (await wire.ask(f"get.policy.{SUBJECT}"))["policy"]["retry_after_seconds"] != 7
        (tmp_path / "password").write_text("secret")
        process.process.send_signal(signal.SIGHUP)
        await _asked(wire, "retry_after_seconds", 7)


async def test_a_changed_file_is_followed_and_the_log_names_what_needs_a_restart(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    wire = await Wire(nc).listen()
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        policies = [{"subjects": [">"], "retry_after_seconds": 7}]
        process.configure(UNHURRIED | {"policies": policies, "sharing": {"silence_ms": 700}})
        await _asked(wire, "retry_after_seconds", 7)
        lines = [json.loads(line) for line in process.log.splitlines() if "config.reloaded" in line]
        assert [line["needs_a_restart"] for line in lines] == [["sharing"]]
        process.configure({"policies": 5})
        await rejected(wire, "_file")
        await _effective(wire, "retry_after_seconds", 7)


async def test_consumer_metadata_counts_only_where_it_is_trusted(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    js = nc.jetstream()
    wire = await Wire(nc).listen()
    own = ConsumerConfig(
        durable_name="own",
        ack_policy=AckPolicy.EXPLICIT,
        metadata={"backpressure.retry_after_seconds": "7", "io.nats.monitor.unprocessed-critical": "40"},
    )
    await js.add_consumer("ROUTER", own)
    info = await js.consumer_info("ROUTER", "own")
    if not (info.config.metadata or {}).get("backpressure.retry_after_seconds"):
        pytest.skip("not with this server: consumers have no metadata")
    for trusted in (False, True):
        async with Sidecar(tmp_path, server.url, UNHURRIED | {"trust_consumer_metadata": trusted}) as process:
            await process.observing()
            result = await wire.ask(f"get.policy.{SUBJECT}")
            assert [c["consumer"] for c in result["consumers"]] == (["own"] if trusted else [])
    (consumer,) = result["consumers"]
    assert (consumer["policy"]["retry_after_seconds"], consumer["sources"]["retry_after_seconds"]) == (7, "consumer")
    assert (consumer["policy"]["pending"]["overload"], consumer["sources"]["pending.overload"]) == (40, "consumer")


async def test_a_consumer_with_huge_metadata_disturbs_no_other(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    """What is wrong with it is reported as far as it fits; the subject's events go on behind it."""
    wire, js = await Wire(nc).listen(), nc.jetstream()
    odd = {"backpressure." + "x\x01" * 500 + str(n): "1" for n in range(60)}
    guest = ConsumerConfig(durable_name="guest", ack_policy=AckPolicy.EXPLICIT, metadata=odd)
    await js.add_consumer("ROUTER", guest)
    if not (await js.consumer_info("ROUTER", "guest")).config.metadata:
        pytest.skip("not with this server: consumers have no metadata")
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"trust_consumer_metadata": True}) as process:
        await process.observing()
        await publish(nc, 20_001)
        await wire.event("backpressure_active")
        refused = await wire.event("policy_rejected")
        assert 1 <= len(refused["errors"]) <= 21
        assert len(json.dumps(await wire.state())) < 64 * 1024
        stored = await wire.stored()
        assert [event["seq"] for event in stored] == list(range(1, len(stored) + 1))


async def test_of_a_policy_that_a_newer_version_wrote_the_known_fields_are_in_force(
    nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    marks = {"warn": 1, "critical": 2, "overload": 40, "patience": 3}
    stored = await put(nc, SUBJECT, {"pending": marks, "admission": {"mode": "gradual"}, "later": {"deep": [1]}})
    assert {
        each["path"]: each["message"].rpartition("; ")[2] for each in (await rejected(wire, SUBJECT))["errors"]
    } == {
        "pending.patience": "ignored, the rest is in force",
        "admission.mode": "ignored, the rest is in force",
        "later": "ignored, the rest is in force",
    }
    assert time.monotonic() - stored < WITHIN
    policy = await wire.ask(f"get.policy.{SUBJECT}")
    assert (policy["policy"]["pending"]["overload"], policy["sources"]["pending.overload"]) == (40, "bucket")
    assert (policy["policy"]["admission"]["mode"], policy["sources"]["admission.mode"]) == ("binary", "default")
    assert sidecar.log.count('"policy.fields_ignored"') == 1 and '"policy.rejected"' not in sidecar.log


async def test_a_policy_key_too_long_for_an_event_blocks_no_other_rejection(
    nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await nc.publish(f"$KV.backpressure_policy.{'x' * 3970}", b"{")
    await put(nc, "orders.new", {"nonsense": 1})
    assert (await rejected(wire, "orders.new"))["errors"]

    async def text() -> bool:
        return sidecar.log.count('"event.dropped"') == 1

    await eventually(text, "the line about the other")


async def test_dynamic_marks_follow_the_measured_rate(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await put(
        nc,
        SUBJECT,
        {"pending": {"overload_seconds": 2, "min": 10, "max": 100_000}, "inflight": {"overload_ratio": 0.2}},
    )
    await publish(nc, 3000)

    async def derived() -> dict[str, Any] | None:
        status = await wire.ask(f"get.status.{SUBJECT}")
        return status if "pending" in status["thresholds_from"] else None

    async with meanwhile(work(nc, per_second=200)):
        status = await eventually(derived, "a mark from the measured rate")
        assert status["thresholds_from"]["pending"].startswith("2 s of work at ")
        assert 10 < status["thresholds"]["queue_overload"] <= 1200
        assert status["thresholds_from"]["inflight"] == "0.2 x max_ack_pending 1000"
        assert status["thresholds"]["inflight_overload"] == 200
