"""The main job of the whole process on a real server, seen only over the wire."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import pairwise
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, StreamConfig

from tests.process.waits import FIRES_WITHIN, STOPS_WITHIN
from tests.support.router import CONSUMER, drain, publish, take
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually


async def test_a_burst_and_its_end_are_published_once(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    active = await wire.event("backpressure_active")
    assert {"pending", "inflight"} <= set(active["reasons"])
    assert (active["subject"], active["to"], active["retry_after_seconds"]) == (SUBJECT, "active", 30)
    await wire.status(status="active")
    decision = await wire.ask(f"decide.gateway.{SUBJECT}")
    assert (decision["action"], decision["retry_after_seconds"], decision["admit_ratio"]) == ("reject", 30, 0.0)
    assert decision["incident"] == active["incident"]
    firing = await wire.event("alert_firing", seconds=FIRES_WITHIN)
    state = await wire.state()
    assert (firing["alert"]["name"], firing["seq"]) == ("backpressure_active", active["seq"] + 1)
    assert (state["status"], state["action"], state["seq"]) == ("active", "reject", firing["seq"])
    await drain(nc, held)
    recovered = await wire.status(status="inactive")
    assert recovered["incident"] is None
    assert (await wire.event("recovery"))["incident"] == active["incident"]

    async def all_published() -> bool:
        return bool(wire.live[-1]["to"] == "inactive") and wire.live == await wire.stored()

    await eventually(all_published, "the same events live and stored, up to the last recovery")
    assert [event["type"] for event in wire.live].count("backpressure_active") == 1
    assert [event["seq"] for event in wire.live] == list(range(1, len(wire.live) + 1))


@pytest.mark.parametrize("how", ["killed", "terminated"])
async def test_a_restart_during_an_incident_repeats_and_loses_no_event(
    nc: Client, sidecar: Sidecar, wire: Wire, how: str
) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wire.event("backpressure_active")
    await (sidecar.kill() if how == "killed" else sidecar.end())
    await sidecar.start()
    await sidecar.observing()
    await wire.status(status="active", freshness="known")
    assert [e["type"] for e in await wire.stored()].count("backpressure_active") == 1
    await sidecar.kill()
    await drain(nc, held)
    await sidecar.start()
    await wire.event("recovery")
    await wire.status(status="inactive")
    events = await wire.stored()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert all(a["to"] == b["from"] for a, b in pairwise(events))


async def test_a_server_restart_repeats_and_loses_no_event(nc: Client, server: NatsServer, sidecar: Sidecar) -> None:
    await publish(nc, 2100)
    await take(nc, 600)
    wire = Wire(nc)
    await wire.status(status="active")
    await server.restart(kill=True)
    await sidecar.ready(nats="connected")
    await wire.status(status="active", freshness="known")

    async def events() -> list[str]:
        return [e["id"] for e in await wire.stored() if e["type"] == "backpressure_active"]

    # The kill may have come between the state and its event: then it is published after the restart.
    assert len(await eventually(events, "the event in the stream")) == 1


async def test_a_silent_server_makes_a_status_stale_then_unknown_never_inactive(
    nc: Client, server: NatsServer, sidecar: Sidecar, wire: Wire
) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wire.event("backpressure_active")
    await nc.jetstream().delete_stream("ROUTER")
    await wire.event("monitoring_lost")
    status = await wire.status(status="unknown", freshness="unknown")
    assert (status["reasons"], status["pressure"]) == ([], None)
    decision = await wire.ask(f"decide.gateway.{SUBJECT}")
    assert (decision["action"], decision["valid_for_ms"]) == ("reject", 0)
    assert "recovery" not in [e["type"] for e in wire.live]
    assert held


async def test_added_and_removed_consumers_are_followed(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    js = nc.jetstream()
    await js.add_stream(name="OTHER", subjects=["other.>"])
    await js.add_consumer(
        "OTHER", ConsumerConfig(durable_name="late", ack_policy=AckPolicy.EXPLICIT, filter_subject="other.*.x")
    )
    assert (await wire.status("other.=2A.x", status="inactive"))["subject"] == "other.*.x"
    assert (await wire.ask("get.status.other.eu.x"))["matched"] == ["other.*.x"]
    await js.delete_consumer("OTHER", "late")
    lost = await wire.event("monitoring_lost")
    assert lost["subject"] == "other.*.x"


async def test_dropped_messages_are_data_loss_not_recovery(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="SMALL", subjects=["small"], max_msgs=2000, discard=DiscardPolicy.OLD))
    await js.add_consumer("SMALL", ConsumerConfig(durable_name="slow", ack_policy=AckPolicy.EXPLICIT))
    await wire.status("small", status="inactive")
    for _ in range(1500):
        await nc.publish("small", b"x")
    await nc.flush()
    await wire.status("small", status="warning")
    for _ in range(1500):
        await nc.publish("small", b"x")
    await nc.flush()
    loss = await wire.event("data_loss")
    assert 0 < loss["lost"] <= 1000
    assert [e["type"] for e in wire.live] == ["backpressure_warning", "data_loss"]


async def test_a_recovery_by_purge_has_that_reason(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await publish(nc, 1500)
    await wire.event("backpressure_warning")
    await nc.jetstream().purge_stream("ROUTER")
    assert "purged" in (await wire.event("recovery"))["reasons"]
    assert "data_loss" not in [e["type"] for e in wire.live]


async def test_observe_mode_counts_and_publishes_but_admits(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    config = UNHURRIED | {"policies": [{"subjects": ["beamline.>"], "mode": "observe"}]}
    wire = await Wire(nc).listen()
    async with Sidecar(tmp_path, server.url, config):
        await publish(nc, 2100)
        await take(nc, 600)
        await wire.event("backpressure_active")
        await wire.status(status="active")
        decision = await wire.ask(f"decide.gateway.{SUBJECT}")
        assert (decision["action"], decision["would"], decision["admit_ratio"]) == ("continue", "reject", 1.0)


async def test_a_consumer_gets_the_number_of_messages_to_pull(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await publish(nc, 600)
    await wire.status(status="inactive")
    free = await wire.ask(f"decide.consumer.{SUBJECT}", {"max_messages": 100})
    assert free["pull"] == {"max_messages": 100, "wait_ms": 0}
    assert (free["action"], free["valid_for_ms"]) == ("continue", 0)
    await take(nc, 550)
    await wire.status(status="warning")
    full = await wire.ask(f"decide.consumer.{SUBJECT}", {"max_messages": 100})
    assert full["pull"]["max_messages"] == 0
    assert 50 <= full["pull"]["wait_ms"] <= 1000
    assert full["action"] == "reject"


async def test_the_alias_has_the_format_of_the_router(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    alias = "beamline.router.v1.status.backpressure"
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"service": {"status_alias": alias}}) as process:
        await process.observing()
        await Wire(nc).status(status="inactive")
        reply = json.loads((await nc.request(alias, json.dumps({"subject": SUBJECT}).encode(), timeout=2)).data)
        assert reply["success"] and reply["data"]["status"] == "inactive"
        assert reply["data"]["thresholds"] == {
            "queue_overload": 1000,
            "latency_overload_ms": 5000,
            "inflight_overload": 450 + 50,
        }
        nobody = json.loads((await nc.request(alias, b'{"subject": "nobody"}', timeout=2)).data)
        assert nobody["data"]["status"] == "unknown"
        bad = json.loads((await nc.request(alias, b"[", timeout=2)).data)
        assert (bad["success"], bad["error"]["code"]) == (False, "invalid_request")


async def test_an_alias_that_a_stream_captures_is_rejected_with_the_stream_name(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    alias = "beamline.router.v1.status.backpressure"
    await nc.jetstream().add_stream(name="GREEDY", subjects=["beamline.router.v1.status.>"])
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"service": {"status_alias": alias}}) as process:
        await process.observing()
        await eventually(lambda: _says(process, "GREEDY"), "a line that names the stream")


async def _says(process: Sidecar, text: str) -> bool:
    return text in process.log


@pytest.mark.parametrize(
    ("tail", "payload", "code"),
    [
        pytest.param("decide.gateway.a=2Eb", b"", "400", id="an encoded dot is not canonical"),
        pytest.param("decide.gateway.=65u", b"", "400", id="an encoded letter is not canonical"),
        pytest.param("decide.gateway.nobody.here", b"", "404", id="nobody watches it"),
        pytest.param(f"decide.gateway.{SUBJECT}", b"{", "400", id="malformed JSON"),
        pytest.param(f"decide.gateway.{SUBJECT}", b"[1]", "400", id="no object"),
        pytest.param(f"decide.gateway.{SUBJECT}", b'{"attempt": true}', "400", id="a boolean is no number"),
        pytest.param(f"decide.gateway.{SUBJECT}", b'{"attempt": 0}', "400", id="attempt below one"),
        pytest.param(f"decide.gateway.{SUBJECT}", b'{"priority": "vip"}', "400", id="unknown priority"),
        pytest.param(f"decide.gateway.{SUBJECT}", b"\xff\xfe", "400", id="not UTF-8"),
        pytest.param(f"decide.gateway.{SUBJECT}", b"x" * 1_000_000, "400", id="a megabyte"),
        pytest.param(f"decide.consumer.{SUBJECT}", b'{"max_messages": 1.5}', "400", id="a float is no count"),
        pytest.param("decide.gateway." + ".".join(["t"] * 300), b"", "404", id="300 tokens"),
        pytest.param("validate.policy", b"nonsense", "400", id="a policy that is no JSON"),
    ],
)
async def test_an_invalid_request_gets_a_clear_error(
    sidecar: Sidecar, wire: Wire, tail: str, payload: bytes, code: str
) -> None:
    await wire.status(status="inactive")
    assert await wire.refused(tail, payload) == code


async def test_replies_are_sent_only_to_inboxes(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await wire.status(status="inactive")
    for subject in (f"backpressure.v1.decide.gateway.{SUBJECT}", "$SRV.PING", "$SRV.INFO.backpressure"):
        await nc.publish(subject, b"", reply="$JS.API.STREAM.DELETE.ROUTER")
    await nc.flush()
    await wire.status(status="inactive")
    assert (await nc.jetstream().stream_info("ROUTER")).config.name == "ROUTER"
    _, metrics = await sidecar.get("/metrics")
    assert 'router_backpressure_dropped_total{what="reply_subject"}' in metrics


async def test_hostile_messages_on_our_subjects_do_no_harm(
    nc: Client, server: NatsServer, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    await server.send_raw(
        b"PUB $JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.\xff\xfe.c 2\r\nhi\r\n",
        b"PUB backpressure.v1.decide.gateway.\xff\xfe 2\r\nhi\r\n",
        b"PUB $JS.EVENT.METRIC.CONSUMER.ACK.ROUTER.router 3\r\n{]}\r\n",
    )
    await publish(nc, 1500)
    await wire.event("backpressure_warning")
    await wire.status(status="warning")


async def test_the_service_is_discoverable_as_a_nats_micro_service(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await wire.status(status="inactive")
    info = json.loads((await nc.request("$SRV.INFO.backpressure", b"", timeout=2)).data)
    names = {endpoint["name"] for endpoint in info["endpoints"]}
    assert {"decide-gateway", "decide-consumer", "status", "status-list", "policy", "validate-policy"} <= names
    result = await wire.ask("get.status")
    assert (result["total"], result["next_offset"]) == (1, None)
    policy = await wire.ask(f"get.policy.{SUBJECT}")
    assert policy["sources"]["pending.warn"] == "default"
    checked = await wire.ask("validate.policy", {"pending": {"overload": -1}, "nonsense": 1})
    assert not checked["valid"]
    assert {"pending.overload", "nonsense"} <= {e["path"] for e in checked["errors"]}


async def test_without_nats_the_process_waits_and_serves_its_probes(tmp_path: Path, start_server: object) -> None:
    port = free_port()
    async with Sidecar(tmp_path, f"nats://127.0.0.1:{port}", UNHURRIED) as process:
        body = await process.ready(ready=True, observing=False)
        assert body["nats"] != "connected"
        assert (await process.get("/healthz"))[0] == (await process.get("/readyz"))[0] == 200
        late = await start_server(port=port)  # type: ignore[operator]  # the fixture's type is a callable
        await process.observing()
        nc = await nats.connect(late.url)
        await nc.close()
        assert process.log.count("nats.unreachable") == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_sigterm_ends_the_process_cleanly(sidecar: Sidecar, how: signal.Signals) -> None:
    code, seconds = await sidecar.end(how)
    assert (code, seconds < STOPS_WITHIN) == (0, True), sidecar.log
    assert "Traceback" not in sidecar.log


async def test_sigterm_ends_the_process_with_a_frozen_server(server: NatsServer, sidecar: Sidecar) -> None:
    server.pause()
    try:
        code, seconds = await sidecar.end()
    finally:
        server.resume()
    assert (code, seconds < STOPS_WITHIN) == (0, True), sidecar.log


async def test_invalid_settings_print_one_line_for_each_mistake_and_exit_with_78(tmp_path: Path) -> None:
    process = Sidecar(tmp_path, None, {"nam": "x", "observe": {"min_interval_ms": -1}})
    await process.start()
    assert process.process is not None
    assert await process.process.wait() == 78
    assert "observe.min_interval_ms" in process.log
    assert "nam" in process.log
    assert "Traceback" not in process.log


async def test_embedded_starts_and_stops_its_own_server(tmp_path: Path) -> None:
    port = free_port()
    async with Sidecar(tmp_path, None, UNHURRIED, "--embedded", "--embedded-port", str(port)) as process:
        await process.observing()
        nc = await nats.connect(f"nats://127.0.0.1:{port}")
        await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
        await nc.jetstream().add_consumer("ROUTER", CONSUMER)
        await Wire(nc).status(status="inactive")
        await nc.close()
        code, _ = await process.end()
        assert code == 0
        started = next(line for line in map(json.loads, process.log.splitlines()) if line["event"] == "started")
        assert started["servers"] == [f"nats://127.0.0.1:{port}"], "not those of the settings"
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)
