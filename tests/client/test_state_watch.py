"""The watch on a real server: after any fault of server, link or bucket an answer is true or marked as old."""

from __future__ import annotations

import json

import nats
import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient, bucket_reader, startup
from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.simulations.state_bucket import BUCKET, SUBJECT, States, active, state, wait_for_admission, wait_until
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer


async def test_a_watch_knows_every_state_when_it_returns_and_every_change_after(
    client: BackpressureClient, states: States
) -> None:
    await states.put(active(), state("calm"))
    await states.heartbeat()
    assert await client.watch([SUBJECT, "calm"])
    refused = client.admit(SUBJECT)
    assert not refused and (refused.status, refused.action, refused.freshness) == ("active", "reject", "known")
    assert (refused.retry_after_seconds, refused.admit_ratio) == (30, 0.0)
    assert client.admit("calm") and client.admit(SUBJECT, "critical")
    await states.put(state())
    await wait_for_admission(client, status="inactive", admitted=True)
    await states.put(state(action="throttle", status="warning", admit_ratio=0.25, retry_after_seconds=2))
    await wait_for_admission(client, action="throttle")
    admitted = sum(bool(client.admit(SUBJECT)) for _ in range(400))
    assert abs(admitted - 100) <= 2


async def test_only_what_was_asked_for_is_kept_and_more_can_be_asked_for(
    client: BackpressureClient, states: States
) -> None:
    await states.put(active("a"), active("b.*"), active("c"))
    assert await client.watch(["a"])
    assert [client.admit(s).admitted for s in ("a", "b.x", "c")] == [False, True, True]
    assert await client.watch("b.x", timeout=2)
    assert [client.admit(s).admitted for s in ("a", "b.x", "c")] == [False, False, True]
    assert client.stats.watch_lost == 0
    assert await client.watch(["a"], timeout=0.001)


async def test_a_deleted_state_admits(client: BackpressureClient, states: States) -> None:
    await states.put(active())
    await client.watch([SUBJECT])
    await states.delete(SUBJECT)
    await wait_for_admission(client, admitted=True, status="unknown")


async def test_before_there_is_a_bucket_it_admits_and_it_begins_when_there_is(
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "QUIET_SECONDS", 0.0)
    assert not await client.watch([SUBJECT], timeout=0.3)
    assert client.admit(SUBJECT)
    await wait_until(lambda: client.stats.watch_lost >= 2, "two tries")
    assert sum("states cannot be read" in r.message for r in caplog.records) == 1
    states = States(nc)
    await states.make()
    await states.put(active())
    await wait_for_admission(client, action="reject")


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_it_survives_a_restart_and_reads_what_changed_meanwhile(
    client: BackpressureClient, server: NatsServer, states: States, kill: bool
) -> None:
    await states.put(active())
    await client.watch([SUBJECT])
    await server.restart(kill=kill)
    assert not client.admit(SUBJECT)
    await wait_until(lambda: states.nc.is_connected, "the reconnect")
    await states.put(state())
    await wait_for_admission(client, status="inactive")
    await states.put(active())
    await wait_for_admission(client, status="active")


async def test_it_survives_a_bucket_deleted_and_created_again(client: BackpressureClient, states: States) -> None:
    await states.put(*(state(f"s{n}") for n in range(20)), active())
    await states.heartbeat()
    await client.watch()
    snapshots = client.stats.snapshots
    await states.remove()
    await states.make()
    await states.heartbeat()
    await wait_until(lambda: client.stats.snapshots > snapshots, "another snapshot")
    # nats-py's watcher would receive nothing until the new bucket's sequence has passed the old one's
    assert client.admit(SUBJECT).action == "reject", "vanished is not deleted"
    await states.put(state())
    await wait_for_admission(client, status="inactive")
    await states.put(active())
    await wait_for_admission(client, status="active")


async def test_on_a_stalled_link_a_state_turns_stale_opens_gradually_and_turns_unknown(
    server: NatsServer, states: States
) -> None:
    await states.put(active(hold_seconds=2.5))
    await states.heartbeat(stale_after_ms=1500, unknown_after_ms=5000, heartbeat_ms=200)
    stages = [("known", "reject"), ("stale", "reject"), ("stale", "throttle"), ("unknown", "throttle")]
    stages.append(("unknown", "continue"))
    seen = []
    async with Proxy(server.port or 0) as proxy:
        async with (
            await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1) as nc,
            BackpressureClient(nc, report_every=None) as client,
        ):
            await client.watch([SUBJECT])
            proxy.black_hole()

            def is_open() -> bool:
                admission = client.admit(SUBJECT)
                seen.append((admission.freshness, admission.action))
                return seen[-1] == stages[-1]

            await wait_until(is_open, "everything admitted")
            order = [stages.index(each) for each in seen]
            assert order == sorted(order), "no stage comes back"
            await wait_until(lambda: client.stats.watch_lost > 0, "the watch noticing")
            proxy.forward()
            await states.put(active())
            await states.heartbeat()
            await wait_for_admission(client, freshness="known", action="reject")


async def test_a_link_that_is_cut_for_a_moment_loses_no_change(server: NatsServer, states: States) -> None:
    await states.put(state())
    async with Proxy(server.port or 0) as proxy:
        async with (
            await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1) as nc,
            BackpressureClient(nc, report_every=None) as client,
        ):
            await client.watch([SUBJECT])
            proxy.refuse()
            await states.put(active())
            proxy.forward()
            await wait_for_admission(client, status="active")
            await wait_until(lambda: client.stats.snapshots >= 2, "the second whole reading")


async def test_states_without_heartbeats_are_reported_once_and_followed_all_the_same(
    client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active())
    await states.heartbeat(stale_after_ms=200, heartbeat_ms=50)
    await client.watch([SUBJECT])
    await wait_until(lambda: "heartbeats are missing" in caplog.text, "the warning")
    await states.put(state(status="warning"))
    await wait_for_admission(client, admitted=True)
    assert [client.stats.snapshots, client.stats.watch_lost] == [1, 0]
    assert sum("heartbeats are missing" in record.message for record in caplog.records) == 1


async def test_a_write_that_the_subscription_misses_is_found(
    client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await client.watch([SUBJECT])
    for subscription in client._nc._subs.values():
        if subscription.subject == f"$KV.{BUCKET}.>":
            await client._nc._send_unsubscribe(subscription._id)
    for status in ("active", "warning", "active", "warning"):
        await states.put(state(status=status))
        await wait_for_admission(client, status=status)
    assert client.stats.watch_lost == 0
    assert sum("nothing comes on" in record.message for record in caplog.records) == 1


async def test_a_write_that_the_bucket_refuses_is_not_believed(client: BackpressureClient, states: States) -> None:
    """A subscriber gets it all the same: it is the way in which replicas write."""
    await states.put(state())
    await client.watch([SUBJECT, "b"])
    await client._nc.publish(
        f"$KV.{BUCKET}.{SUBJECT}",
        json.dumps(active()).encode(),
        headers={"Nats-Expected-Last-Subject-Sequence": "99"},
    )
    await states.put(active("b"))
    await wait_for_admission(client, "b", status="active")
    assert client.admit(SUBJECT).status == "inactive"


async def test_a_bucket_with_more_history_and_without_direct_access_is_read_too(
    client: BackpressureClient, nc: Client
) -> None:
    states = States(nc)
    await nc.jetstream().add_stream(name=f"KV_{BUCKET}", subjects=[f"$KV.{BUCKET}.>"], allow_direct=False)
    await states.put(active(), state("a"), state("b"), state())
    await states.delete("a")
    await client.watch()
    assert client.admit(SUBJECT).status == "inactive"
    assert client.admit("a").status == "unknown"
    await states.put(active())
    await wait_for_admission(client, status="active")


async def test_more_states_than_one_reply_has_are_all_read(
    client: BackpressureClient, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_reader, "MOST", 10)
    await states.put(*(active(f"s{n}") for n in range(25)))
    await client.watch()
    assert not any(client.admit(f"s{n}") for n in range(25))
    assert client.stats.watch_lost == 0


async def test_it_makes_no_consumer(client: BackpressureClient, states: States) -> None:
    await states.put(active())
    await client.watch([SUBJECT])
    info = await states.nc.jetstream().stream_info(f"KV_{BUCKET}")
    assert not client.admit(SUBJECT) and info.state.consumer_count == 0


async def test_a_key_that_is_no_text_ends_no_connection(
    client: BackpressureClient, server: NatsServer, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(state())
    await client.watch()
    events: list[object] = []
    await client.on_event(events.append)
    await states.nc.rtt()
    key = f"$KV.{BUCKET}.x".encode()
    await server.send_raw(
        b"PUB " + key + b"\xff\xfe 2\r\nhi\r\n",
        b"HPUB " + key + b" 20 22\r\nNATS/1.0 \xff\xff\xff\r\n\r\nxxxxhi\r\n",
        b"HPUB " + key + b" 8 10\r\nNATS/1.0hi\r\n",
        b"PUB backpressure.v1.event.\xff 2\r\nhi\r\n",
    )
    await states.put(active())
    await wait_for_admission(client, action="reject")
    assert client._nc.stats["reconnects"] == 0 and client.stats.watch_lost == 0
    assert sum("cannot be decoded is dropped" in record.message for record in caplog.records) == 1
    fresh = BackpressureClient(await nats.connect(server.url), report_every=None)
    async with fresh:
        assert await fresh.watch() and not fresh.admit(SUBJECT), "those keys are read over too"
    await fresh._nc.close()


async def test_what_cannot_be_decoded_admits_and_is_logged_once(
    client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active())
    await states.put(active("another"))
    await client.watch()
    absurd = b'{"subject":"orders.created","status":"active","action":"reject","admit_ratio":-1}'
    for n, value in enumerate((b"", b"nonsense", absurd), start=1):
        await states.raw(SUBJECT, value)  # one by one: the server skips what is overwritten before it is delivered
        await wait_until(lambda n=n: client.stats.malformed_state == n, "the count")  # type: ignore[misc]
    await states.raw(HEARTBEAT, b"nonsense")
    await wait_until(lambda: client.stats.malformed_heartbeat == 1, "all of it")
    assert client.admit(SUBJECT) and not client.admit("another")
    assert sum(f"key {SUBJECT} of the state bucket" in r.message for r in caplog.records) == 1
