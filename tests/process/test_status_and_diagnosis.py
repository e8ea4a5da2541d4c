"""Alerts, diagnoses, latencies and sample checks of a real process, seen only over the wire."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace as replaced
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig

from nats_backpressure.core.signals.diagnosis import WORKING
from tests.process.waits import FIRES_WITHIN
from tests.support.background import meanwhile
from tests.support.parts import need_server
from tests.support.router import CONSUMER, drain, publish, take, work
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually


async def test_alerts_become_pending_fire_and_resolve_across_a_restart(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    rules = [
        {"name": "long-queue", "when": {"pending_above": 400}, "for_seconds": 1.5, "severity": "critical"},
        {"name": "patient", "when": {"pending_above": 400}, "for_seconds": 600},
    ]
    wire = await Wire(nc).listen()
    async with Sidecar(
        tmp_path, server.url, UNHURRIED | {"policies": [{"subjects": [">"], "alerts": rules}]}
    ) as process:
        await process.observing()

        async def standing(**states: str) -> dict[str, Any]:
            async def look() -> dict[str, Any] | None:
                result = {a["name"]: a for a in (await wire.ask(f"get.alerts.{SUBJECT}"))["alerts"]}
                return result if all(n in result and result[n]["state"] == s for n, s in states.items()) else None

            alerts: dict[str, Any] = await eventually(look, f"alerts {states}")
            return alerts

        await publish(nc, 500)
        await standing(**{"long-queue": "pending"})
        fired = await wire.event("alert_firing", seconds=FIRES_WITHIN)
        assert (fired["alert"]["name"], fired["alert"]["severity"], fired["alert"]["value"]) == (
            "long-queue",
            "critical",
            500,
        )
        assert (fired["from"], fired["to"]) == ("inactive", "inactive")
        alerts = await standing(**{"long-queue": "firing", "patient": "pending"})
        _, page = await process.get("/metrics")
        assert f'router_backpressure_alerts{{alert="long-queue",state="firing",subject="{SUBJECT}"}} 1.0' in page
        await process.kill()
        await process.start()
        await process.observing()
        again = await standing(**{"long-queue": "firing", "patient": "pending"})
        assert {n: a["since"] for n, a in again.items()} == {n: a["since"] for n, a in alerts.items()}
        listed = (await wire.ask("get.alerts"))["alerts"]
        assert {(a["subject"], a["name"]) for a in listed} >= {(SUBJECT, "long-queue"), (SUBJECT, "patient")}
        await drain(nc, [])
        resolved = await wire.event("alert_resolved")
        assert resolved["alert"]["name"] == "long-queue"
        assert [e["type"] for e in await wire.stored()] == ["alert_firing", "alert_resolved"]


class TestHistory:
    """One incident with a restart in its middle, asked for in every way."""

    async def test_all_history_is_the_same_after_a_restart(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        await publish(nc, 2100)
        held = await take(nc, 600)
        await wire.event("backpressure_active")
        await sidecar.kill()
        await sidecar.start()
        await sidecar.observing()
        await wire.status(status="active", freshness="known")
        await drain(nc, held)
        await wire.status(status="inactive")
        stored = await wire.stored()

        async def settled() -> bool:
            return len((await wire.ask(f"get.events.{SUBJECT}"))["events"]) == len(await wire.stored())

        await eventually(settled, "every event in the answer")
        stored = await wire.stored()
        result = await wire.ask(f"get.events.{SUBJECT}")
        assert (result["events"], result["truncated"]) == (stored[::-1], False)
        only = await wire.ask(f"get.events.{SUBJECT}", {"type": "recovery", "limit": 1})
        assert [e["type"] for e in only["events"]] == ["recovery"]
        assert only["truncated"] is (sum(e["type"] == "recovery" for e in stored) > 1)
        first = (await wire.ask(f"get.events.{SUBJECT}", {"until": stored[0]["timestamp"]}))["events"]
        assert first[-1] == stored[0] and {e["timestamp"] for e in first} == {stored[0]["timestamp"]}
        moves = [e for e in stored if e["type"] in ("backpressure_active", "backpressure_warning", "recovery")]
        history = await wire.ask(f"get.history.{SUBJECT}")
        assert [(t["from"], t["to"], t["at"]) for t in history["transitions"]] == [
            (e["from"], e["to"], e["timestamp"]) for e in reversed(moves)
        ]
        assert all(t["held_ms"] is None or t["held_ms"] >= 0 for t in history["transitions"])
        recovery = await wire.ask(f"get.recovery.{SUBJECT}")
        assert (recovery["recovered"], recovery["recoveries_total"]) == (True, 1)
        assert (recovery["recovery_time"], recovery["incident"]) == (moves[-1]["timestamp"], moves[0]["incident"])
        assert recovery["duration_ms"] == recovery["mean_time_to_recover_ms"] > 0
        metrics = await wire.ask(f"get.metrics.{SUBJECT}", {"windows": ["1m", "24h"]})
        assert metrics["total_events"] == len(moves)
        assert metrics["active_events"] == sum(e["type"] == "backpressure_active" for e in stored)
        assert metrics["last_event_time"] == stored[-1]["timestamp"]
        minute = metrics["windows"]["1m"]
        assert minute["events"]["backpressure_active"] == metrics["active_events"]
        assert 0 < minute["coverage"] < 1
        assert minute["time_in"]["active_ms"] > 0
        assert minute["pending"]["min"] == 0 < minute["pending"]["max"]

    @pytest.mark.parametrize(
        ("tail", "payload"),
        [
            (f"get.events.{SUBJECT}", b'{"limit": 0}'),
            (f"get.events.{SUBJECT}", b'{"since": "yesterday"}'),
            (f"get.events.{SUBJECT}", b'{"type": "nonsense"}'),
            (f"get.history.{SUBJECT}", b'{"limit": 1001}'),
            (f"get.metrics.{SUBJECT}", b'{"windows": ["25h"]}'),
            (f"get.metrics.{SUBJECT}", b'{"windows": ["soon"]}'),
        ],
    )
    async def test_an_invalid_history_request_gets_a_clear_error(
        self, sidecar: Sidecar, wire: Wire, tail: str, payload: bytes
    ) -> None:
        await wire.status(status="inactive")
        assert await wire.refused(tail, payload) == "400"
        assert await wire.refused("get.history.nobody.here") == "404"


class TestDiagnoses:
    """Each on a real server, decided over several samples; the rest is tested at the adapters."""

    async def diagnosed(self, wire: Wire, diagnosis: str, subject: str = SUBJECT) -> dict[str, Any]:
        return await wire.status(subject, diagnosis=diagnosis)

    async def test_idle_then_nobody_pulling_then_idle(
        self, nc: Client, server: NatsServer, router: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        policy = {"subjects": [">"], "stall_seconds": 1}
        async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
            await self.diagnosed(wire, "idle")
            await publish(nc, 1500)
            await self.diagnosed(wire, "nobody_pulling")
            active = await wire.event("backpressure_active")
            assert (active["reasons"], active["diagnosis"]) == (["pending", "nobody_pulling"], "nobody_pulling")
            _, page = await process.get("/metrics")
            assert f'router_backpressure_diagnosis{{diagnosis="nobody_pulling",subject="{SUBJECT}"}} 1.0' in page

    async def test_nobody_pulling_is_said_only_once_the_worker_that_is_refused_asks_no_more(
        self, nc: Client, server: NatsServer, router: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        policy = {"subjects": [">"], "inflight": {"warn": 5, "critical": 5, "overload": 5}}

        async def asked() -> bool:
            answer = await wire.ask(f"decide.consumer.{SUBJECT}", {"max_messages": 5, "held": 5})
            return bool(answer["action"] == "reject")

        async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
            await process.observing()
            await publish(nc, 50)
            held = await take(nc, 5)
            await eventually(asked, "a refusal")
            until = asyncio.get_running_loop().time() + 1.5 * WORKING
            while asyncio.get_running_loop().time() < until:
                await asked()  # one is granted now and then, since no ack comes
                assert (await wire.ask(f"get.status.{SUBJECT}"))["diagnosis"] != "nobody_pulling"
                await asyncio.sleep(0.2)
            await self.diagnosed(wire, "nobody_pulling")
        assert held

    async def test_a_hanging_worker_reaches_max_ack_pending(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        await publish(nc, 1500)
        held = await take(nc, 1000)

        async def stalled() -> bool:
            status = await wire.ask(f"get.status.{SUBJECT}")
            return (status["diagnosis"], status["metrics"]["latency_source"]) == ("cap_reached", "stall")

        async with meanwhile(_keep_asking(await nc.jetstream().pull_subscribe_bind("router", "ROUTER"))):
            await eventually(stalled, "the cap reached, and the stall as its latency")
        assert held

    async def test_falling_behind_and_draining(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        await publish(nc, 300)
        async with meanwhile(work(nc, per_second=200)):
            async with meanwhile(_arrive(nc, per_second=800)):
                status = await self.diagnosed(wire, "falling_behind")
                if status["metrics"]["pending_messages"] < 1000:
                    assert 0 < status["metrics"]["overload_in_seconds"] < 600
                assert status["metrics"]["arrival_rate"] > status["metrics"]["ack_rate"] > 0
                assert status["metrics"]["oldest_age_seconds"] > 0
            await self.diagnosed(wire, "draining")

    async def test_a_poison_message_that_is_given_up(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        js = nc.jetstream()
        await js.add_stream(name="POISON", subjects=["poison"])
        config = ConsumerConfig(durable_name="p", ack_policy=AckPolicy.EXPLICIT, max_deliver=1, ack_wait=0.2)
        await js.add_consumer("POISON", config)
        await wire.status("poison", status="inactive")
        subscription = await js.pull_subscribe_bind("p", "POISON")

        async def feed() -> None:
            while True:
                await js.publish("poison", b"x")
                with suppress(TimeoutError):
                    await subscription.fetch(5, timeout=0.2)

        async with meanwhile(feed()):
            await self.diagnosed(wire, "poison", "poison")

    async def test_a_stream_at_its_limits(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        js = nc.jetstream()
        await js.add_stream(StreamConfig(name="SMALL", subjects=["small"], max_msgs=100))
        await js.add_consumer("SMALL", ConsumerConfig(durable_name="c", ack_policy=AckPolicy.EXPLICIT))
        subscription = await js.pull_subscribe_bind("c", "SMALL")
        for _ in range(120):
            await js.publish("small", b"x")
        async with meanwhile(_keep_asking(subscription)):
            status = await self.diagnosed(wire, "stream_full", "small")
            assert status["metrics"]["stream_fill"] == 1.0

    async def test_a_paused_consumer(self, nc: Client, server: NatsServer, sidecar: Sidecar, wire: Wire) -> None:
        need_server(server.version, (2, 11), "a pause")
        await wire.status(status="inactive")
        until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat().replace("+00:00", "Z")
        reply = await nc.request(
            "$JS.API.CONSUMER.PAUSE.ROUTER.router", json.dumps({"pause_until": until}).encode(), timeout=5
        )
        assert json.loads(reply.data)["paused"]
        await publish(nc, 10)
        await self.diagnosed(wire, "paused")

    async def test_a_consumer_that_appears_on_a_full_stream_reads_history_first(
        self, nc: Client, server: NatsServer, router: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        policy = {"subjects": [">"], "consumers": ["audit"], "count_backfill": False}
        await publish(nc, 3000)
        await drain(nc, [])
        async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
            await process.observing()
            await nc.jetstream().add_consumer(
                "ROUTER", ConsumerConfig(durable_name="audit", ack_policy=AckPolicy.EXPLICIT)
            )

            async def seen() -> bool:
                consumers = (await wire.ask(f"get.status.{SUBJECT}"))["consumers"]
                return any((c["consumer"], c["diagnosis"]) == ("audit", "backfilling") for c in consumers)

            async with meanwhile(work(nc, 200, "audit")):
                await eventually(seen, "backfilling")
                assert (await wire.ask(f"get.status.{SUBJECT}"))["status"] == "inactive"
                assert wire.live == []


class TestLatency:
    async def test_a_slow_tail_raises_the_sampled_p95_but_not_the_median(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        js = nc.jetstream()
        await js.add_stream(name="SAMPLED", subjects=["sampled"])
        config = ConsumerConfig(durable_name="c", ack_policy=AckPolicy.EXPLICIT, sample_freq="100%")
        await js.add_consumer("SAMPLED", config)
        await wire.status("sampled", status="inactive")
        subscription = await js.pull_subscribe_bind("c", "SAMPLED")
        for _ in range(40):
            await js.publish("sampled", b"x")
        messages = await subscription.fetch(40, timeout=2)
        for message in messages[:35]:
            await message.ack()
        await asyncio.sleep(0.5)  # the tail: five of forty take half a second
        for message in messages[35:]:
            await message.ack()

        async def measured() -> dict[str, Any] | None:
            metrics: dict[str, Any] = (await wire.ask("get.status.sampled"))["metrics"]
            return metrics if metrics["latency_source"] == "sampled" and metrics["latency_p95_ms"] > 450 else None

        metrics = await eventually(measured, "a sampled p95 of the tail")
        assert metrics["latency_p50_ms"] < 450 < metrics["latency_p95_ms"] <= metrics["latency_p99_ms"]

    async def test_without_samples_latency_is_estimated_and_null_during_redeliveries(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        await publish(nc, 3000)

        async def source(wanted: str) -> bool:
            return (await wire.ask(f"get.status.{SUBJECT}"))["metrics"]["latency_source"] == wanted

        async with meanwhile(_hold_and_ack(nc)):
            await eventually(lambda: source("estimated"), "an estimate")
        for message in await take(nc, 50):
            await message.nak()
        (kept,) = await take(nc, 1)

        async def unknown() -> bool:
            metrics = (await wire.ask(f"get.status.{SUBJECT}"))["metrics"]
            return metrics["latency_source"] != "estimated" and metrics["redelivery_ratio"] > 0

        await eventually(unknown, "no estimate from a storm of redeliveries")
        await kept.ack()

    async def test_the_stall_of_a_hanging_worker_grows(self, nc: Client, sidecar: Sidecar, wire: Wire) -> None:
        await publish(nc, 20)
        held = await take(nc, 20)
        before = 0.0
        for _ in range(3):

            async def longer(than: float = before) -> float | None:
                metrics = (await wire.ask(f"get.status.{SUBJECT}"))["metrics"]
                stalled = metrics["latency_source"] == "stall" and metrics["stall_ms"] > than
                return float(metrics["stall_ms"]) if stalled else None

            before = await eventually(longer, "a longer stall")
        assert held


async def _hold_and_ack(nc: Client) -> None:
    """A worker that holds a few messages for a while."""
    held: list[Any] = []
    while True:
        held += await take(nc, 10)
        if len(held) > 20:
            for message in held[:10]:
                await message.ack()
            del held[:10]
        await asyncio.sleep(0.05)


class TestGuards:
    """What looks like calm and is none, or like trouble and is none; eviction and purge stand with the main job."""

    async def test_a_redelivery_count_that_never_falls_ends_to_count(
        self, nc: Client, sidecar: Sidecar, wire: Wire
    ) -> None:
        js = nc.jetstream()
        await js.add_stream(name="STICKY", subjects=["sticky"])
        config = ConsumerConfig(durable_name="s", ack_policy=AckPolicy.EXPLICIT, max_deliver=2, ack_wait=0.2)
        await js.add_consumer("STICKY", config)
        await wire.status("sticky", status="inactive")
        subscription = await js.pull_subscribe_bind("s", "STICKY")
        for _ in range(10):
            await js.publish("sticky", b"x")
        seen, given_up = 0, False
        while not given_up:  # the server gives a message up only when somebody pulls
            with suppress(TimeoutError):
                seen += len(await subscription.fetch(10, timeout=0.3))
            given_up = seen == 20 and not (await js.consumer_info("STICKY", "s")).num_ack_pending

        async def ratio(troubled: bool) -> dict[str, Any] | None:
            status = await wire.ask("get.status.sticky")
            return status if bool(status["metrics"]["redelivery_ratio"]) is troubled else None

        await eventually(lambda: ratio(troubled=True), "redeliveries in the ratio")
        status = await eventually(lambda: ratio(troubled=False), "the ratio to fall", 25.0)
        assert status["status"] == "inactive"
        assert (await js.consumer_info("STICKY", "s")).num_redelivered

    @pytest.mark.parametrize("what", ["consumer", "stream"])
    async def test_a_recreated_consumer_is_accepted_after_two_samples_and_reported_once(
        self, nc: Client, sidecar: Sidecar, wire: Wire, what: str
    ) -> None:
        await publish(nc, 2100)
        await take(nc, 600)
        await wire.event("backpressure_active")
        js = nc.jetstream()
        if what == "stream":
            await js.delete_stream("ROUTER")
            await js.add_stream(name="ROUTER", subjects=[SUBJECT])
        else:
            await js.delete_consumer("ROUTER", "router")
        await js.add_consumer("ROUTER", replaced(CONSUMER, deliver_policy=DeliverPolicy.NEW))
        await wire.status(status="inactive", freshness="known")

        async def over() -> list[dict[str, Any]] | None:
            result = await wire.stored()
            return result if result[-1]["to"] == "inactive" else None

        stored = await eventually(over, "the end in the stream")
        assert all(a["to"] == b["from"] for a, b in pairwise(stored))
        assert [e["seq"] for e in stored] == list(range(1, len(stored) + 1))
        await publish(nc, 1500)
        await wire.status(status="warning")

    async def test_a_reset_consumer_is_followed_to_its_new_position(
        self, nc: Client, server: NatsServer, sidecar: Sidecar, wire: Wire
    ) -> None:
        need_server(server.version, (2, 14), "CONSUMER.RESET")
        await publish(nc, 1500)
        await drain(nc, [])
        await wire.status(status="inactive", diagnosis="idle")
        reply = await nc.request("$JS.API.CONSUMER.RESET.ROUTER.router", b'{"seq": 1}', timeout=2)
        assert "error" not in json.loads(reply.data)
        status = await wire.status(status="warning")
        assert status["metrics"]["pending_messages"] == 1500


async def _arrive(nc: Client, per_second: int) -> None:
    while True:
        for _ in range(per_second // 20):
            await nc.publish(SUBJECT, b"x")
        await asyncio.sleep(0.05)


async def _keep_asking(subscription: Any) -> None:
    """A worker that asks for one message now and then and acknowledges it at once."""
    while True:
        with suppress(TimeoutError):
            for message in await subscription.fetch(1, timeout=0.2):
                await message.ack()
        await asyncio.sleep(0.1)
