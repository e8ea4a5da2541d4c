"""The watch on a real server: after any fault of server, link or bucket an answer is true or marked as old."""

from __future__ import annotations

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.state_watch import StateWatch
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import HEARTBEAT, Names
from tests.simulations.state_bucket import BUCKET, SUBJECT, States, active, state, wait_for_admission, wait_until
from tests.support.background import meanwhile
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


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
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert not await client.watch([SUBJECT], timeout=0.3)
    assert client.admit(SUBJECT)
    await wait_until(lambda: client.stats.watch_lost >= 2, "two tries")
    assert sum("watch of the backpressure states" in r.message for r in caplog.records) == 1
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
        nc = await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        async with BackpressureClient(nc, report_every=None) as client:
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
        await nc.close()


async def test_a_link_that_is_cut_for_a_moment_loses_no_change(server: NatsServer, states: States) -> None:
    await states.put(state())
    async with Proxy(server.port or 0) as proxy:
        nc = await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        async with BackpressureClient(nc, report_every=None) as client:
            await client.watch([SUBJECT])
            proxy.refuse()
            await states.put(active())
            proxy.forward()
            await wait_for_admission(client, status="active")
            assert client.stats.snapshots >= 2
        await nc.close()


async def test_a_consumer_that_is_taken_away_is_created_again(
    client: BackpressureClient, nc: Client, states: States
) -> None:
    await client.watch([SUBJECT])
    jsm = nc.jetstream()
    for consumer in await jsm.consumers_info(f"KV_{BUCKET}"):
        await jsm.delete_consumer(f"KV_{BUCKET}", consumer.name)
    await states.put(active())
    await wait_for_admission(client, status="active")


async def test_a_watch_without_heartbeats_is_opened_again_though_the_server_answers(
    nc: Client, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active())
    await states.heartbeat(stale_after_ms=200, heartbeat_ms=50)
    stats = Stats()
    watch = StateWatch(nc, Names(), "$JS.API", StateMirror(), stats, OnceLogger(), first_reopen=0.5)
    async with meanwhile(watch.run()):
        await wait_until(lambda: stats.snapshots >= 2, "another snapshot")
    assert watch.reopen_after > 0.5, "each time later"
    assert stats.watch_lost == 0
    assert ["heartbeats are missing" in record.message for record in caplog.records] == [True]


async def test_a_message_lost_on_the_way_restarts_the_watch(client: BackpressureClient, states: States) -> None:
    await client.watch([SUBJECT])
    dropped: list[Msg | None] = []
    client._watch._queue.put_nowait = dropped.append  # type: ignore[method-assign]
    await states.put(active())
    await wait_until(lambda: any(m and m.data for m in dropped), "the loss")
    del client._watch._queue.put_nowait  # type: ignore[attr-defined]
    await wait_for_admission(client, status="active")
    assert client.stats.watch_lost == 1


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


async def test_many_watches_leave_nothing_in_the_bucket(nc: Client, states: States) -> None:
    async def one_consumer() -> bool:
        try:
            return len(await nc.jetstream().consumers_info(f"KV_{BUCKET}")) == 1
        except NotFoundError:
            return False

    watch = StateWatch(nc, Names(), "$JS.API", StateMirror(), Stats(), OnceLogger(), inactive_threshold=0.1)
    async with meanwhile(watch.run()):
        for _ in range(5):
            watch.restart()
            await watch.ready.wait()
        await eventually(one_consumer, "one consumer")
