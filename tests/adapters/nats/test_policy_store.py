"""The policy bucket on a real server: every change is known within a second, also after the bucket was deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.kv import KeyValue
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import policy_limits, policy_store, pull
from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.kv import Bucket
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests
from nats_backpressure.adapters.nats.policy_limits import TOO_LARGE
from nats_backpressure.adapters.nats.policy_store import JetStreamPolicyStore
from nats_backpressure.policy.snapshot import PolicySnapshot
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.clock import SystemClock
from tests.conftest import StartServer
from tests.fakes.clock import FakeClock, settled
from tests.simulations.both_servers import Direct
from tests.simulations.stored_samples import Requests
from tests.support.background import meanwhile
from tests.support.sidecar import eventually

NAMES = Names()
WITHIN = 1.0
"""Simulated seconds in which a change is in force."""


class Follower:
    """A policy store and the snapshots that it returned, newest last."""

    def __init__(self, nc: Client) -> None:
        self.snapshots: list[PolicySnapshot] = []
        self.dropped: list[str] = []
        self.nc = nc
        requests = Requests(nc)
        js = JetStreamApi(requests)
        self.clock = FakeClock()
        self.store = JetStreamPolicyStore(js, NAMES, self.dropped.append, lambda: requests.nc, self.clock)
        self.requests = requests

    @property
    def values(self) -> dict[str, bytes]:
        return {key: value.value for key, value in self.snapshots[-1].entries.items()} if self.snapshots else {}

    async def polled(self) -> None:
        """Returns once the poll that is under way has ended."""

        async def sleeping() -> bool:
            return self.clock.sleeping

        await eventually(sleeping, "the end of a poll")

    async def poll(self) -> None:
        """Let the time to the next poll pass, and the poll happen."""
        await self.polled()
        self.clock.advance(policy_store.POLL_EVERY)
        await settled()
        await self.polled()

    async def holds(self, **expected: bytes) -> float:
        """Simulated seconds until the newest snapshot has these values, and no others."""
        began = self.clock.now().mono
        await self.polled()
        while not (self.snapshots and self.values == expected):
            assert self.clock.now().mono - began < 60, f"{self.values} and not {expected}"
            await self.poll()
        return self.clock.now().mono - began


@pytest.fixture
async def bucket(nc: Client) -> KeyValue:
    return await nc.jetstream().create_key_value(bucket=NAMES.policy_bucket)


@pytest.fixture
async def follower(nc: Client) -> AsyncIterator[Follower]:
    follower = Follower(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        yield follower


async def test_puts_and_deletions_are_in_force_within_a_second(bucket: KeyValue, follower: Follower) -> None:
    await bucket.put("before", b"1")
    assert await follower.holds(before=b"1") < WITHIN
    await bucket.put("a", b"2")
    assert await follower.holds(before=b"1", a=b"2") < WITHIN
    await bucket.put("a", b"3")
    assert await follower.holds(before=b"1", a=b"3") < WITHIN
    await bucket.delete("a")
    assert await follower.holds(before=b"1") < WITHIN
    await bucket.purge("before")
    assert await follower.holds() < WITHIN
    assert follower.snapshots[-1].bucket


async def test_each_value_has_its_own_revision_and_no_snapshot_comes_twice(
    bucket: KeyValue, follower: Follower
) -> None:
    revision = await bucket.put("a", b"1")
    await follower.holds(a=b"1")
    assert follower.snapshots[-1].entries["a"].revision == revision
    assert abs(follower.snapshots[-1].entries["a"].at - time.time()) < 5, "when it was put, by the server's clock"
    count = len(follower.snapshots)
    for _ in range(3):
        await follower.poll()
    assert len(follower.snapshots) == count


class Listed(Follower):
    """A follower that also gets the list of streams, every tenth of a second."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self.asked = 0
        info, observer = (
            self.store._bucket.info,
            JetStreamObserver(
                ObserverRequests(
                    Direct(nc), SystemClock(), count=self.dropped.append, count_request=lambda *request: None
                )
            ),
        )

        async def counted() -> Any:
            self.asked += 1
            return await info()

        self.store._bucket.info, self.observer = counted, observer  # type: ignore[method-assign]

    async def read(self, lists: int) -> None:
        for _ in range(lists):
            self.store.take_looks((await self.observer.streams()).looks)
            self.clock.advance(0.1)
            await settled()
            await self.polled()


async def test_while_the_list_of_streams_comes_the_bucket_is_asked_only_after_a_change(
    bucket: KeyValue, nc: Client
) -> None:
    await bucket.put("a", b"1")
    follower = Listed(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.polled()
        await follower.read(10)
        asked = follower.asked
        await follower.read(30)
        assert (follower.asked, follower.values) == (asked, {"a": b"1"})
        await bucket.put("a", b"2")
        await follower.read(int(WITHIN / 0.1))
        assert follower.values == {"a": b"2"}
        await follower.read(10)
        asked = follower.asked
        await follower.read(30)
        assert follower.asked == asked


@pytest.mark.parametrize("how", ["no list comes", "the lists lack the bucket"])
async def test_without_a_list_that_shows_the_bucket_it_is_asked_itself(bucket: KeyValue, nc: Client, how: str) -> None:
    await bucket.put("a", b"1")
    follower = Listed(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.polled()
        await follower.read(20)
        await bucket.put("a", b"2")
        if how == "the lists lack the bucket":
            follower.store.take_looks(())
        assert await follower.holds(a=b"2") < WITHIN


async def test_a_bucket_that_is_missing_is_waited_for(nc: Client, follower: Follower) -> None:
    await follower.holds()
    bucket = await nc.jetstream().create_key_value(bucket=NAMES.policy_bucket)
    await bucket.put("a", b"1")
    assert await follower.holds(a=b"1") < WITHIN


async def test_a_bucket_deleted_and_created_again_is_another_bucket(
    nc: Client, bucket: KeyValue, follower: Follower
) -> None:
    for n in range(5):
        await bucket.put("a", b"%d" % n)
    await follower.holds(a=b"4")
    first = follower.snapshots[-1].bucket
    await nc.jetstream().delete_key_value(NAMES.policy_bucket)
    again = await nc.jetstream().create_key_value(bucket=NAMES.policy_bucket)
    await again.put("b", b"1")
    assert await follower.holds(b=b"1") < WITHIN
    assert follower.snapshots[-1].bucket != first


async def test_the_bucket_is_followed_over_a_restart_of_the_server(start_server: StartServer) -> None:
    server = await start_server()
    async with await nats.connect(server.url, reconnect_time_wait=0.1) as nc:
        follower = Follower(nc)
        async with meanwhile(follower.store.follow(follower.snapshots.append)):
            bucket = await nc.jetstream().create_key_value(bucket=NAMES.policy_bucket)
            await bucket.put("a", b"1")
            await follower.holds(a=b"1")
            await server.restart(kill=True)

            async def put() -> bool:
                try:
                    return bool(await bucket.put("a", b"2"))
                except Exception:
                    return False

            await eventually(put, "the bucket to be back")
            await follower.holds(a=b"2")


async def test_keys_beyond_the_limit_are_counted_and_logged_once(
    bucket: KeyValue, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_limits, "MOST_KEYS", 2)
    for n in range(4):
        await bucket.put(f"k{n}", b"x")
    await follower.holds(k0=b"x", k1=b"x")

    async def counted() -> bool:
        await follower.poll()
        return "policy_beyond_limit" in follower.dropped

    await eventually(counted, "the keys beyond the limit to be counted")


class Lagging:
    """A bucket whose entries are those of an earlier reading, a few times after each change."""

    def __init__(self, bucket: Bucket, readings: int) -> None:
        self.entries, bucket.entries = bucket.entries, self  # type: ignore[method-assign]
        self.left, self.before = readings, list[tuple[str, Message]]()

    async def __call__(self) -> AsyncIterator[tuple[str, Message]]:
        now = [entry async for entry in self.entries()]
        if self.before and now != self.before and self.left:
            self.left -= 1
            now = self.before
        else:
            self.before = now
        for entry in now:
            yield entry


@pytest.mark.parametrize("change", ["put", "put again", "delete"])
async def test_a_put_policy_is_in_force_though_a_replica_lags(bucket: KeyValue, nc: Client, change: str) -> None:
    """One server has no replicas: that one shows less than the leader is played."""
    await bucket.put("a", b"1")
    follower = Follower(nc)
    Lagging(follower.store._bucket, 2)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.holds(a=b"1")
        match change:
            case "put":
                await bucket.put("b", b"2")
                await follower.holds(a=b"1", b=b"2")
            case "put again":
                await bucket.put("a", b"2")
                await follower.holds(a=b"2")
            case "delete":
                await bucket.delete("a")
                await follower.holds()


async def test_a_replica_that_never_catches_up_is_used_in_the_end(
    bucket: KeyValue, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_store, "BEHIND_LIMIT", 2)
    await bucket.put("a", b"1")
    follower = Follower(nc)
    Lagging(follower.store._bucket, 3)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.holds(a=b"1")
        await bucket.put("b", b"2")
        with capture_logs() as lines:

            async def logged() -> bool:
                await follower.poll()
                return "policies.behind" in [line["event"] for line in lines]

            await eventually(logged, "the line in the log")
        assert follower.values == {"a": b"1"}


async def test_values_that_are_no_policies_cost_neither_memory_nor_the_connection(nc: Client, bucket: KeyValue) -> None:
    """80 MiB at once were too much for the server: it ended the connection that observes."""
    for n in range(90):
        await bucket.put(f"large.{n}", b"x" * 900_000)
    await bucket.put("a", b"{}")
    follower = Follower(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.holds(a=b"{}", **{f"large.{n}": TOO_LARGE for n in range(90)})
    assert len({id(value) for key, value in follower.values.items() if key != "a"}) == 1
    assert nc.stats["reconnects"] == 0 and follower.dropped == []


async def test_a_value_larger_than_what_is_asked_for_at_once_is_read_alone(
    nc: Client, bucket: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PULL_BYTES", 2000)
    values = {str(n): b"%d" % n * size for n, size in enumerate([300, 300, 9000, 9000, 300] + [20] * 300)}
    for key, value in values.items():
        await bucket.put(key, value)
    follower = Follower(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.holds(**values)


async def test_of_more_bytes_than_are_read_the_oldest_policies_count(
    nc: Client, bucket: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_limits, "MOST_BYTES", 100)
    for key in "abc":
        await bucket.put(key, key.encode() * 40)
    follower = Follower(nc)
    with capture_logs() as logs:
        async with meanwhile(follower.store.follow(follower.snapshots.append)):
            await follower.holds(a=b"a" * 40, b=b"b" * 40)
    assert follower.dropped == ["policy_beyond_limit"]
    assert [(line["event"], line["ignored"]) for line in logs if line["log_level"] == "warning"] == [
        ("policies.too_many", "c")
    ]


async def test_in_a_full_bucket_an_override_counts_and_what_was_in_force_can_be_changed(
    nc: Client, bucket: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_limits, "MOST_KEYS", 2)
    for key in "abc":
        await bucket.put(key, b"1")
    follower = Follower(nc)
    async with meanwhile(follower.store.follow(follower.snapshots.append)):
        await follower.holds(a=b"1", b=b"1")
        await bucket.put("a", b"2")
        await bucket.put("=override.a", b"{}")
        await follower.holds(a=b"2", b=b"1", **{"=override.a": b"{}"})


@pytest.mark.parametrize("listed", [False, True], ids=["asked itself", "in the list of streams"])
async def test_a_bucket_restored_from_a_backup_and_written_since_is_read_again(
    start_server: StartServer, listed: bool
) -> None:
    """On the next connection it shows the same creation time, last sequence and number of messages as before."""
    server = await start_server()
    async with await nats.connect(server.url, reconnect_time_wait=0.1) as nc:
        bucket = await nc.jetstream().create_key_value(bucket=NAMES.policy_bucket)
        await bucket.put("a", b"1")
        await server.stop()
        place = next(server.directory.rglob(f"KV_{NAMES.policy_bucket}"))
        shutil.copytree(place, server.directory / "backup")
        await server.start()
        async with await nats.connect(server.url) as before:
            await before.jetstream().publish(f"$KV.{NAMES.policy_bucket}.b", b"lost")
            follower = Listed(before)
            async with meanwhile(follower.store.follow(follower.snapshots.append)):
                await follower.holds(a=b"1", b=b"lost")
                revision = follower.snapshots[-1].entries["b"].revision
                await server.stop()
                shutil.rmtree(place)
                (server.directory / "backup").rename(place)
                await server.start()
                async with await nats.connect(server.url) as after:
                    put = await after.jetstream().publish(f"$KV.{NAMES.policy_bucket}.b", b"put since")
                    assert put.seq == revision, "the same again"
                    follower.requests.nc = after
                    if listed:
                        follower.observer = JetStreamObserver(
                            ObserverRequests(
                                Direct(after),
                                SystemClock(),
                                count=follower.dropped.append,
                                count_request=lambda *_: None,
                            )
                        )
                        await follower.read(20)
                        assert follower.values == {"a": b"1", "b": b"put since"}
                    assert await follower.holds(a=b"1", b=b"put since") < WITHIN
