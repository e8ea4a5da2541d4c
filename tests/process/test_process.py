"""The process: its metrics page, its exit codes, and its errors for settings that do not fit the server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig, StreamSource
from prometheus_client.parser import text_string_to_metric_families

from nats_backpressure import app
from nats_backpressure.adapters.followed_file import FollowedFile
from nats_backpressure.config.settings import Http, Settings
from nats_backpressure.runtime.service import Service
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually


async def says(process: Sidecar, text: str) -> None:
    async def logged() -> bool:
        return text in process.log

    await eventually(logged, f"the log to say {text!r}")


async def add_router(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    await js.add_consumer("ROUTER", ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT))


async def test_the_metrics_page_has_each_subject_under_the_names_of_the_contract(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    await add_router(nc)
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        wire = Wire(nc)
        for _ in range(1500):
            await nc.publish(SUBJECT, b"x")
        await wire.status(status="warning")
        await wire.waiting(1500)
        await wire.ask(f"decide.gateway.{SUBJECT}")
        _, text = await process.get("/metrics")
    series = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}

    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(text)
        (only,) = [s.value for f in families for s in f.samples if s.name == name and s.labels == labels]
        return float(only)

    here = {"subject": SUBJECT}
    assert value("router_backpressure_status", **here) == 1
    assert value("router_backpressure_pending_messages", stream="ROUTER", consumer="router", **here) == 1500
    assert value("router_backpressure_events_total", event_type="backpressure_warning", **here) == 1
    assert value("router_backpressure_decisions_total", role="gateway", action="continue", **here) == 1
    assert value("router_backpressure_transitions_total", **here, **{"from": "inactive", "to": "warning"}) == 1
    assert value("router_jetstream_pending_messages", consumer="router", **here) == 1500
    assert value("router_intake_backpressure_active", **here) == 0
    expected = {
        "api_requests_total", "observe_duration_seconds_count", "build_info", "pressure", "admit_ratio",
        "inflight_messages", "sample_age_seconds", "time_in_status_seconds_total", "decision_duration_seconds_count",
    }  # fmt: skip
    assert {f"router_backpressure_{name}" for name in expected} <= series.keys()


async def test_a_missing_watched_stream_is_logged_and_awaited(nc: Client, server: NatsServer, tmp_path: Path) -> None:
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"watch": [{"stream": "ROUTER"}]}) as process:
        await says(process, "watch.stream_missing")
        await add_router(nc)
        await Wire(nc).status(status="inactive")
        assert process.log.count("watch.stream_missing") == 1


async def test_a_stream_that_captures_our_subjects_is_named_and_awaited(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    await add_router(nc)
    await nc.jetstream().add_stream(name="GREEDY", subjects=["backpressure.>"])
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await says(process, '"subjects_held_by": ["GREEDY"]')
        assert (await process.ready(observing=False))["nats"] == "connected"
        await nc.jetstream().delete_stream("GREEDY")
        await process.observing()


async def test_only_durable_consumers_with_acks_are_watched(nc: Client, server: NatsServer, tmp_path: Path) -> None:
    await add_router(nc)
    js = nc.jetstream()
    await js.add_stream(name="AUDIT", subjects=["audit"])
    await js.add_consumer("AUDIT", ConsumerConfig(durable_name="silent", ack_policy=AckPolicy.NONE))
    await js.add_stream(name="SPY", subjects=["spy"])
    await js.add_consumer("SPY", ConsumerConfig(name="tail", ack_policy=AckPolicy.EXPLICIT, inactive_threshold=60))
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        await Wire(nc).status(status="inactive")
        assert [s["subject"] for s in (await Wire(nc).ask("get.status"))["subjects"]] == [SUBJECT]


async def test_a_consumer_with_several_filters_belongs_to_each_subject(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    if server.version < (2, 10):
        pytest.skip("not with this server: several filters came with 2.10")
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    filters = ["orders.a", "orders.b.*"]
    await js.add_consumer(
        "ORDERS", ConsumerConfig(durable_name="both", ack_policy=AckPolicy.EXPLICIT, filter_subjects=filters)
    )
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        assert [s["subject"] for s in (await Wire(nc).ask("get.status"))["subjects"]] == filters


async def test_a_consumer_of_a_mirror_belongs_to_the_subjects_of_its_origin(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ORIGIN", subjects=["origin.>"])
    await js.add_stream(StreamConfig(name="COPY", mirror=StreamSource(name="ORIGIN")))
    await js.add_consumer("COPY", ConsumerConfig(durable_name="reader", ack_policy=AckPolicy.EXPLICIT))
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        assert [s["subject"] for s in (await Wire(nc).ask("get.status"))["subjects"]] == ["origin.>"]


async def test_a_port_in_use_prints_one_line(server: NatsServer, tmp_path: Path) -> None:
    config: dict[str, Any] = {"http": {"host": "127.0.0.1", "port": server.port}}
    process = Sidecar(tmp_path, server.url, config)
    await process.start()
    assert process.process is not None
    assert await process.process.wait() == 78
    assert f"http.port {server.port}" in process.log
    assert "Traceback" not in process.log


@pytest.mark.usefixtures("logs_as_before")
def test_a_crash_in_a_loop_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(self: Service) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Service, "_tick", crash)
    settings = Settings(http=Http(host="127.0.0.1", port=0))
    assert app.start(settings, None, FollowedFile(None, lambda: settings)) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_comes_while_it_loads_is_handled_later(tmp_path: Path, how: signal.Signals) -> None:
    """Its settings come through a pipe, so that it is surely loading when the signal comes."""
    pipe = tmp_path / "settings"
    os.mkfifo(pipe)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_backpressure", "run", "--config", str(pipe)),
        env={name: value for name, value in os.environ.items() if not name.startswith("NATS_")},
        stderr=asyncio.subprocess.PIPE,
    )
    writer = await asyncio.to_thread(pipe.open, "w")  # returns when it opens it to read
    process.send_signal(how)
    with writer:
        writer.write("{http: {port: 0}, nats: {servers: [127.0.0.1:1]}}")
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while b"started" not in (line := await process.stderr.readline()):
            assert line, "it ended before it started"
        if how is signal.SIGHUP:
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
