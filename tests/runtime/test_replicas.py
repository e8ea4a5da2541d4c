"""Who is there: replicas come, go, fall silent, are suspended or cut off, and each knows the others in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nats_backpressure.protocol.between_replicas import ALL_UNREAD, MOST_UNREAD, PRESENCE
from nats_backpressure.runtime.replicas import EVERY, FIRST_ANSWERS, PRESENT_FOR, Replicas
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus, FakeReplicaChannel
from tests.runtime.test_effect_runner import Counts


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.bus = FakeBus(self.clock)
        self.counts = Counts()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.changes: list[str] = []

    def start(self, name: str, policies: str = "m", instance: str = "") -> Replicas:
        replicas = Replicas(self.bus.channel(name), self.clock, instance or f"pod-{name}", name, self.counts)
        replicas.set_policies(policies)
        replicas.on_change = lambda: self.changes.append(name)
        self.tasks[name] = asyncio.create_task(replicas.run())
        return replicas

    async def kill(self, name: str) -> None:
        await cancel_and_wait([self.tasks.pop(name)])

    def channel(self, name: str) -> FakeReplicaChannel:
        return self.bus.channels[name]

    async def stop(self) -> None:
        await cancel_and_wait(self.tasks.values())


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    try:
        yield world
    finally:
        await world.stop()


async def test_a_newcomer_knows_the_others_at_once_and_they_know_it() -> None:
    async with running() as world:
        a, b = world.start("a"), world.start("b")
        await world.clock.run(10.4)
        c = world.start("c")
        await world.clock.run(0.1)
        assert set(c.others) == {"a", "b"} and set(a.others) == {"b", "c"} and set(b.others) == {"a", "c"}


@pytest.mark.parametrize("other", ["vm", "else"])
async def test_another_process_with_our_own_instance_is_told_apart_in_the_log(other: str) -> None:
    async with running() as world:
        with capture_logs() as lines:
            world.start("a", instance="vm")
            world.start("b", instance=other)
            await world.clock.run(1.1)
    present = [line for line in lines if line["event"] == "replica.present"]
    assert len(present) == 2 and all(("hint" in line) == (other == "vm") for line in present)


async def test_one_whose_connection_comes_late_knows_the_others_as_soon_as_it_is_made() -> None:
    """Before it is sure that nobody else writes."""
    async with running() as world:
        world.start("a")
        await world.clock.run(3.3)
        b = world.start("b")
        world.channel("b").connected = False
        await world.clock.run(0.5)
        world.channel("b").connected = True
        b.announce()
        await world.clock.run(0.15)
        assert set(b.others) == {"a"} and b.marks() is None


async def test_one_that_leaves_is_gone_at_once_and_its_instance_is_known_to_have_stopped() -> None:
    async with running() as world:
        a, b = world.start("a"), world.start("b")
        await world.clock.run(5)
        world.changes.clear()
        b.leave()
        await world.clock.run(0.1)
        assert not a.others and list(a.departed) == ["pod-b"] and world.changes == ["a"]


async def test_one_that_falls_silent_is_gone_after_three_seconds() -> None:
    async with running() as world:
        a, _ = world.start("a"), world.start("b")
        await world.clock.run(5)
        await world.kill("b")
        silent_since = world.clock.now().mono
        await world.clock.until(lambda: not a.others, "b to be gone")
        assert PRESENT_FOR - EVERY <= world.clock.now().mono - silent_since <= PRESENT_FOR + EVERY
        assert not a.departed, "it reported no stop"


async def test_one_that_starts_again_under_its_name_has_not_departed() -> None:
    async with running() as world:
        a, b = world.start("a"), world.start("b")
        await world.clock.run(1)
        b.leave()
        await world.kill("b")
        await world.clock.run(1)
        world.start("b")
        await world.clock.run(1)
        assert set(a.others) == {"b"} and not a.departed


@pytest.mark.parametrize("how", ["suspended", "disconnected"])
async def test_a_replica_that_could_receive_nothing_takes_no_other_for_gone(how: str) -> None:
    async with running() as world:
        a, b = world.start("a"), world.start("b")
        await world.clock.run(5)
        world.changes.clear()
        if how == "suspended":
            world.channel("a").suspend()
        else:
            world.channel("a").connected = False
        await world.clock.run(60)
        assert set(a.others) == {"b"}
        if how == "suspended":
            world.channel("a").resume()
        else:
            world.channel("a").connected = True
        for _ in range(30):
            await world.clock.run(0.1)
            assert set(a.others) == {"b"}
        assert "a" not in world.changes and set(b.others) == {"a"}


async def test_on_either_side_of_a_partition_the_other_is_gone_until_it_heals() -> None:
    async with running() as world:
        a, b, c = world.start("a"), world.start("b"), world.start("c")
        await world.clock.run(5)
        world.bus.partition("a", "bc")
        await world.clock.run(5)
        assert not a.others and set(b.others) == {"c"} and set(c.others) == {"b"}
        world.bus.heal()
        await world.clock.run(1.1)
        assert all(len(one.others) == 2 for one in (a, b, c))


async def test_under_which_policies_others_write() -> None:
    async with running() as world:
        a = world.start("a", "new")
        assert a.marks() is None, "too early to know"
        await world.clock.run(FIRST_ANSWERS)
        assert a.marks() == set()
        b = world.start("b", "old")
        await world.clock.run(0.1)
        assert a.marks() == {"old"}
        b.writes = lambda: False
        await world.clock.run(EVERY)
        assert a.marks() == set()
        b.writes = lambda: True
        b.set_policies("new")
        await world.clock.run(0.2)
        assert a.marks() == {"new"}


async def test_the_others_know_at_once_that_it_cannot_write_any_more() -> None:
    async with running() as world:
        a, b = world.start("a"), world.start("b")
        await world.clock.run(FIRST_ANSWERS + 0.2)
        for writes in (False, True):
            b.writes = partial(bool, writes)
            b.announce_change()
            await world.clock.run(0.1)
            assert a.marks() == ({"m"} if writes else set())


async def test_that_only_some_share_what_they_read_is_a_warning_once_at_each_of_them() -> None:
    async with running() as world:
        with capture_logs() as logged:
            for name in "abc":
                world.start(name).shares = name != "b"
            await world.clock.run(10)
            warnings = [line for line in logged if line["log_level"] == "warning"]
            assert [line["event"] for line in warnings] == ["sharing.differs"] * 3
            others = [(line["shares"], line["other"]) for line in warnings]
            assert others.count((True, "pod-b")) == 2 and sum(not shares for shares, _ in others) == 1
            await world.kill("b")
            await world.clock.run(PRESENT_FOR + EVERY)
            world.start("d").shares = False
            await world.clock.run(2)
        assert [line["event"] for line in logged].count("sharing.differs") == 6, "it was over meanwhile"


async def test_where_all_share_or_none_nothing_is_logged() -> None:
    for shares in (False, True):
        async with running() as world:
            with capture_logs() as logged:
                for name in "abc":
                    world.start(name).shares = shares
                await world.clock.run(5)
        assert {line["log_level"] for line in logged} == {"info"}


async def test_a_report_with_many_long_names_is_as_short_as_the_server_takes() -> None:
    async with running() as world:
        world.bus.longest = 1024
        a, b = world.start("a"), world.start("b")
        b.unread = lambda: tuple(f"S{n}" * 50 for n in range(MOST_UNREAD))
        await world.clock.run(3 * EVERY)
        assert [one.presence.unread for one in a.others.values()] == [ALL_UNREAD]


async def test_what_cannot_be_read_counts_as_silence() -> None:
    async with running() as world:
        a = world.start("a")
        stranger = world.bus.channel("z")
        junk = [
            b"",
            b"x",
            b"[]",
            b"{}",
            b'{"schema":2,"id":"z"}',
            b'{"schema":1,"id":""}',
            b'{"schema":1,"id":7}',
            b"\xff",
        ]
        for payload in junk:
            stranger.publish(PRESENCE, payload)
        stranger.publish(PRESENCE, msgspec.json.encode({"schema": 1, "id": "a"}))
        await world.clock.run(0.1)
        assert not a.others and world.counts.all == [("replica_message_unread",)] * len(junk)
        stranger.publish(PRESENCE, msgspec.json.encode({"schema": 1, "id": "z", "unknown": {"field": 1}}))
        await world.clock.run(0.1)
        assert set(a.others) == {"z"}


async def test_one_that_hears_nothing_new_wakes_up_for_its_reports_only() -> None:
    async with running() as world:
        world.start("a")
        world.bus.record, sleeps, wait = True, list[float](), world.clock.wait

        async def counting(event: asyncio.Event, seconds: float) -> None:
            sleeps.append(seconds)
            await wait(event, seconds)

        with (
            patch.object(world.clock, "wait", counting),
            patch.object(world.clock, "sleep", wraps=world.clock.sleep) as short,
        ):
            await world.clock.run(10.5)
        assert not short.call_count, "it sleeps within `wait` only"
        assert len(sleeps) == len(world.bus.sent) == 11


async def test_a_flood_of_forged_newcomers_is_answered_rarely_and_remembered_within_bounds() -> None:
    async with running() as world:
        a = world.start("a")
        world.bus.record = True
        stranger = world.bus.channel("z")
        for n in range(2000):
            stranger.publish(PRESENCE, msgspec.json.encode({"schema": 1, "id": f"z{n}"}))
            await world.clock.run(0.001)
        assert len(a.others) <= 256
        assert sum(sender == "a" for sender, _, _ in world.bus.sent) <= 2 / 0.05 + 1


@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["start", "kill", "leave", "suspend", "resume"]), st.integers(0, 4), st.floats(0, 4)),
        max_size=25,
    ),
    loss=st.sampled_from([0.0, 0.1]),
)
async def test_once_nothing_happens_any_more_everybody_knows_exactly_the_others(moves: list, loss: float) -> None:
    async with running() as world:
        world.bus.loss, alive, suspended = loss, dict[str, Replicas](), set[str]()
        for move, n, pause in moves:
            name = f"r{n}"
            if move == "start" and name not in alive:
                alive[name] = world.start(name)
            elif move in ("kill", "leave") and name in alive and name not in suspended:
                if move == "leave":
                    alive[name].leave()
                del alive[name]
                await world.kill(name)
            elif move == "suspend" and name in alive:
                suspended.add(name)
                world.channel(name).suspend()
            elif move == "resume" and name in suspended:
                suspended.discard(name)
                world.channel(name).resume()
            await world.clock.run(pause)
        for name in suspended:
            world.channel(name).resume()
        world.bus.loss = 0.0
        await world.clock.run(PRESENT_FOR + 2 * EVERY)
        for name, replicas in alive.items():
            assert set(replicas.others) == set(alive) - {name}
        shares = [replicas.share("c") for replicas in alive.values()]
        assert sorted(share.rank for share in shares) == list(range(len(alive)))
        assert all(share.replicas == len(alive) for share in shares)


async def test_each_report_shows_the_clock_of_its_sender_and_changes_nothing_else() -> None:
    async with running() as world:
        a, reports = world.start("a"), list[tuple[str, float]]()
        a.on_report = lambda id_, sent: reports.append((id_, sent))
        world.start("b")
        await world.clock.run(2.0)
        world.changes.clear()
        reports.clear()
        began = world.clock.now().mono
        await world.clock.run(5.0)
        assert [id_ for id_, _ in reports] == ["b"] * 5
        assert began < reports[0][1] < reports[-1][1] <= world.clock.now().mono
        assert world.changes == []
