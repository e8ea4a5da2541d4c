"""What several replicas grant of one consumer at the same time stays below its mark, however late they know it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.core.admission.grant_shares import UNKNOWN_FOR, AskedReplicas, Share
from nats_backpressure.core.admission.pull_grants import REFUSED_LATELY
from nats_backpressure.core.admission.requesters import GRANT_LIFE
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.worker_reports import WorkerReports
from nats_backpressure.core.status import thresholds
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.between_replicas import GRANTS
from nats_backpressure.protocol.requests import ConsumerRequest, Due
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.queries.pulls import PullRequest
from nats_backpressure.runtime.replicas import FIRST_HEARD
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.runtime.test_effect_runner import Counts
from tests.simulations.granting_replicas import GrantingReplicas
from tests.support.exploring import examples

KEY = ConsumerKey("S", "c")
EVERY = 0.1
"""Seconds between two readings."""


class World:
    """Some replicas which all have the same newest reading of one consumer; its acks move all the time."""

    def __init__(self, replicas: int, mark: int, inflight: int) -> None:
        self.clock, self.counts = FakeClock(), Counts()
        self.bus = FakeBus(self.clock, delay=(0.0, 0.0))
        self.policy = Policy(inflight=InflightRule(1, 1, mark))
        self.inflight, self.delivered = inflight, 0
        self.read()
        granting = GrantingReplicas(
            replicas, self.clock, self.bus, self.counts, lambda key: self.member.reading if key == KEY else None
        )
        self.pulls, self.replicas, self._granting = granting.pulls, granting.all, granting
        self.granted: list[tuple[float, int]] = []

    def read(self) -> None:
        now = self.clock.now()
        numbers: dict[str, Any] = {"ack_rate": 100.0, "delivered_consumer": self.delivered}
        reading = Reading(KEY, Now(now.mono, now.wall), 10_000, self.inflight, None, None, **numbers)
        marks = thresholds.marks(self.policy, reading)
        self.reading = reading
        self.member = Member(KEY, self.policy, reading=reading, proof=now.mono, marks=marks)

    async def keep_reading(self) -> None:
        while True:
            await self.clock.sleep(EVERY)
            self.read()

    def restart(self, replica: int) -> asyncio.Task[None]:
        """Another process takes the place of a replica that was killed."""
        self.bus.channels[str(replica)].suspend()
        self._granting.start(replica)
        return asyncio.create_task(self.replicas[replica].run())

    def ask(self, replica: int, asker: str, asked: int, held: int | None = None, *, leaving: bool = False) -> int:
        now, request = self.clock.now().mono, ConsumerRequest(asked, held=held, leaving=leaving)
        n = self.pulls[replica].grant(PullRequest(request, [], (self.member,), None), asker, now).n
        self.granted.append((now, n))
        return n

    def most_in_a_second(self) -> int:
        return max(
            (sum(n for at, n in self.granted if since <= at < since + 1) for since, _ in self.granted), default=0
        )


@asynccontextmanager
async def running(replicas: int, mark: int = 500, inflight: int = 0) -> AsyncIterator[World]:
    world = World(replicas, mark, inflight)
    tasks = [asyncio.create_task(work) for work in (world.keep_reading(), *(one.run() for one in world.replicas))]
    await world.clock.run(GRANT_LIFE + 2 * EVERY)
    yield world
    await cancel_and_wait(tasks)


@pytest.mark.parametrize("delay", [0.0, 0.001, UNKNOWN_FOR / 2])
@pytest.mark.no_cover  # traced, it takes four times as long
async def test_24_askers_of_100_at_three_replicas_in_one_moment_get_500_in_any_second(delay: float) -> None:
    async with running(3) as world:
        world.bus.delay = (delay, delay)
        for moment in range(200):
            for n in range(24):
                world.ask(n % 3, f"asker-{moment}-{n}", 100)
            await world.clock.run(0.01)
        assert world.most_in_a_second() == 500


@given(
    replicas=st.integers(2, 8),
    mark=st.sampled_from([2, 4, 7, 10, 500]),
    delay=st.sampled_from([(0.0, 0.0), (0.0, 0.015), (0.015, 0.015)]),
    asks=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.001, 0.007, 0.016, 0.03, 0.05, 0.2, 0.85, 0.95]),
            st.integers(0, 7),
            st.sampled_from([1, 3, 100, 1000]),
        ),
        max_size=80,
    ),
)
async def test_in_any_second_no_more_than_the_room_is_granted(
    replicas: int, mark: int, delay: tuple[float, float], asks: list
) -> None:
    async with running(replicas, mark, inflight=1) as world:
        world.bus.delay = delay
        for asker, (pause, replica, asked) in enumerate(asks):
            world.ask(replica % replicas, f"asker-{asker}", asked)
            await world.clock.run(pause)
        assert world.most_in_a_second() <= mark - 1


@given(
    replicas=st.integers(2, 8),
    delay=st.sampled_from([0.016, 0.03, 0.06, 0.1, 0.15, 2.0]),
    asks=st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.007, 0.03]), st.integers(0, 7)), min_size=40, max_size=120),
)
async def test_messages_that_take_longer_cost_one_room_for_each_30_ms_and_never_more_than_one_per_replica(
    replicas: int, delay: float, asks: list
) -> None:
    async with running(replicas) as world:
        world.bus.delay = (delay, delay)
        for asker, (pause, replica) in enumerate(asks):
            world.ask(replica % replicas, f"asker-{asker}", 1000)
            await world.clock.run(pause)
        await world.clock.run(delay)
        assert world.most_in_a_second() <= min(replicas, math.ceil(2 * delay / UNKNOWN_FOR)) * 500


async def test_what_another_granted_is_free_again_once_it_is_delivered_and_acknowledged() -> None:
    async with running(2, mark=100) as world:
        assert world.ask(0, "a", 100) == 49, "two are for those that are known to be asked"
        await world.clock.run(0.05)
        assert [world.ask(0, "a", 100), world.ask(1, "b", 100)] == [26, 25]
        world.delivered, world.inflight = 100, 0
        await world.clock.run(2 * EVERY)
        assert world.ask(1, "b", 100) + world.ask(0, "a", 100) == 100


@settings(max_examples=examples(10, most=60, why="each simulates up to half a minute of three or more replicas"))
@given(
    replicas=st.sampled_from([1, 3, 8]),
    workers=st.integers(1, 24),
    more=st.integers(0, 30),
    delay=st.sampled_from([(0.0, 0.0), (0.0, 0.01), (0.01, 0.01)]),
    replaced=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 2**16),
)
async def test_workers_that_report_what_they_hold_wait_for_nobody_and_keep_the_mark_at_any_replicas(
    replicas: int, workers: int, more: int, delay: tuple[float, float], replaced: float, seed: int
) -> None:
    """Each works off what it has and asks again, at whichever replica, or leaves, and another one takes its place; what
    is in flight is read now and then."""
    mark, rng = workers + more, random.Random(seed)
    async with running(replicas, mark) as world:
        world.bus.delay = delay
        held, most, refused, generations = [0] * workers, 0, 0, [0] * workers
        for step in range(60):
            for worker in rng.sample(range(workers), workers):
                held[worker] = rng.choice([0, 0, held[worker] // 2])
                if new := held[worker] == 0 and rng.random() < replaced:
                    world.ask(rng.randrange(replicas), f"{worker}.{generations[worker]}", 10, 0, leaving=True)
                    generations[worker] += 1
                    await world.clock.run(0.02)
                n = world.ask(rng.randrange(replicas), f"{worker}.{generations[worker]}", 10, held[worker])
                held[worker] += n
                world.delivered += n
                world.inflight = sum(held)
                most = max(most, sum(held))
                refused += step > 20 and held[worker] == 0 and not new  # another replica may give its place away now
                await world.clock.run(0.02)
        assert most <= mark
        assert refused == 0


async def test_what_one_replica_was_told_is_due_is_granted_once_at_any() -> None:
    async with running(2, 5) as world:
        world.bus.delay = (0.01, 0.01)
        world.inflight = 5
        world.read()

        def ask(replica: int, asker: str, *due: Due) -> int:
            request = ConsumerRequest(10, held=0, lost=sum(one.n for one in due), due=due)
            now = world.clock.now().mono
            return world.pulls[replica].grant(PullRequest(request, [], (world.member,), None), asker, now).n

        for replica, asker in enumerate("ab"):
            ask(replica, asker)
        await world.clock.run(EVERY)
        ask(0, "a", Due(4, 1000))
        await world.clock.run(0.9)
        assert [ask(1, "b"), ask(0, "a")] == [0, 0]
        await world.clock.run(0.4)
        granted = [ask(1, "b")]
        await world.clock.run(0.05)
        granted.append(ask(0, "a"))
        assert granted[0] > 0 and sum(granted) <= 4


async def test_a_replica_that_connects_grants_nothing_beside_what_others_granted_before() -> None:
    """The reading shows nothing of the 11 that are granted: they are pulled later."""
    async with running(3, mark=12, inflight=1) as world:
        world.bus.channels["2"].connected = False
        for asker in range(30):
            world.ask(asker % 2, f"asker-{asker}", 10)
            await world.clock.run(0.02)
        world.bus.channels["2"].connected = True
        world.replicas[2].announce()
        began, seconds = world.clock.now().mono, 0.0
        while seconds < GRANT_LIFE:
            assert world.ask(2, f"late-{seconds}", 10) == 0
            await world.clock.run(0.05)
            seconds = world.clock.now().mono - began
        assert world.most_in_a_second() <= 11
        await world.clock.run(2 * EVERY)
        assert world.ask(2, "in the end", 10) + world.ask(2, "and one more", 10) > 0


async def test_a_replica_that_starts_is_alone_only_once_others_would_have_answered() -> None:
    """The one that was killed, and the others, granted all of the room just before."""
    async with running(3, mark=12, inflight=1) as world:
        for asker in range(30):
            world.ask(asker % 3, f"asker-{asker}", 10)
            await world.clock.run(0.01)
        world.bus.delay = (0.015, 0.015)
        presence, began, seconds = world.restart(2), world.clock.now().mono, 0.0
        while seconds < GRANT_LIFE:
            assert world.ask(2, f"late-{seconds}", 10) == 0
            await world.clock.run(0.01)
            seconds = world.clock.now().mono - began
        await cancel_and_wait([presence])
        assert world.most_in_a_second() <= 11


async def test_one_that_starts_alone_waits_for_no_reading() -> None:
    async with running(1, mark=12, inflight=1) as world:
        presence = world.restart(0)
        assert world.ask(0, "a", 20) == 0
        await world.clock.run(FIRST_HEARD)
        assert world.ask(0, "a", 20) == 11
        await cancel_and_wait([presence])


@pytest.mark.parametrize("held", [0, None])
async def test_what_workers_tell_one_replica_is_known_to_all(held: int | None) -> None:
    async with running(3, 5) as world:
        world.inflight = 5
        world.read()
        key = world.member.key

        def reports() -> list[WorkerReports]:
            return [pulls.worker_reports(key, world.clock.now().mono) for pulls in world.pulls]

        assert reports() == [WorkerReports()] * 3
        request = ConsumerRequest(10, held=held, lost=4, due=(Due(4, 1000),))
        world.pulls[0].grant(PullRequest(request, [], (world.member,), None), "a", world.clock.now().mono)
        await world.clock.run(0.05)
        assert reports() == [WorkerReports(4, refused=True)] * 3
        await world.clock.run(1.2)
        assert reports() == [WorkerReports(0, refused=True)] * 3
        await world.clock.run(REFUSED_LATELY)
        assert reports() == [WorkerReports()] * 3


async def test_what_is_lost_of_a_consumer_under_two_subjects_counts_once_at_each_replica() -> None:
    async with running(2, 40) as world:
        world.inflight = 30
        world.read()
        request = ConsumerRequest(10, held=0, lost=5, due=(Due(5, 5000),), earlier=(Due(5, 5000),))
        now = world.clock.now().mono
        world.pulls[0].grant(PullRequest(request, [], (world.member, world.member), None), "a", now)
        await world.clock.run(0.05)
        assert [pulls.worker_reports(world.member.key, now).returned for pulls in world.pulls] == [10, 10]


async def test_under_observe_nobody_is_refused() -> None:
    async with running(1, 5) as world:
        world.inflight = 9
        world.read()
        now = world.clock.now().mono
        world.pulls[0].grant(PullRequest(ConsumerRequest(10), [], (), (world.member,)), "a", now)
        assert world.pulls[0].worker_reports(world.member.key, now) == WorkerReports()


async def test_what_was_delivered_before_another_granted_is_not_taken_off_its_grant() -> None:
    """The second replica was not asked for a while, in which thousands were delivered."""
    async with running(2) as world:
        world.ask(1, "b", 1)
        world.delivered = 5000
        await world.clock.run(1.95)
        assert world.ask(0, "a", 100) == 100
        await world.clock.run(2 * EVERY)
        assert world.ask(1, "b", 1000) == 199, "half of what a's 100 leave: nothing of them was delivered"


async def test_alone_nothing_is_sent_and_the_whole_room_is_granted() -> None:
    async with running(1) as world:
        world.bus.record = True
        assert world.ask(0, "a", 1000) == 500
        await world.clock.run(0.5)
        assert [topic for _, topic, _ in world.bus.sent if topic == GRANTS] == []


async def test_with_nothing_in_flight_and_nothing_granted_each_replica_grants_something() -> None:
    async with running(5, mark=2) as world:
        assert all(world.ask(n, "a", 10) for n in range(5))


async def test_many_grants_of_one_moment_go_out_in_few_messages() -> None:
    async with running(2, mark=100_000) as world:
        world.bus.record = True
        for n in range(200):
            world.ask(0, f"asker-{n}", 1)
        await world.clock.run(0.01)
        sent = [payload for _, topic, payload in world.bus.sent if topic == GRANTS]
        assert [len(msgspec.json.decode(payload)["grants"]) for payload in sent] == [64, 64, 64, 8]


@pytest.mark.parametrize("longest", [512, 1024, 4096])
async def test_on_a_server_that_takes_short_messages_the_grants_of_one_moment_go_out_in_more(longest: int) -> None:
    async with running(2, mark=100_000) as world:
        world.bus.record, world.bus.longest = True, longest
        for n in range(200):
            world.ask(0, f"asker-{n}", 1)
        await world.clock.run(0.01)
        sent = [payload for _, topic, payload in world.bus.sent if topic == GRANTS]
        assert max(map(len, sent)) <= longest
        assert sum(len(msgspec.json.decode(payload)["grants"]) for payload in sent) == 200
        await world.clock.run(UNKNOWN_FOR)
        others = world.pulls[1]._trackers[KEY]._grants.outstanding(world.reading, world.clock.now().mono)
        assert others == 200, "all of them count at the other replica"


async def test_a_replica_that_reports_a_full_mark_takes_the_share_that_the_others_leave_it() -> None:
    """A report of one that is granted nothing counts as a claim there, and so here."""
    async with running(2, mark=2, inflight=2) as world:
        assert world.ask(0, "a", 5, held=1) == 0
        await world.clock.run(0.05)
        shares = [pulls._trackers[KEY]._asked for pulls in world.pulls]
        share = [replicas.share(KEY.consumer) for replicas in world.replicas]
        now = world.clock.now().mono
        assert sum(shares[n].share_of(share[n], 2, now) for n in range(2)) == 2


async def test_what_cannot_be_read_and_what_is_no_member_counts_nothing() -> None:
    async with running(2) as world:
        stranger = world.bus.channel("z")
        grant = {"stream": "S", "consumer": "c", "n": 500, "asker": "a"}
        wrong = [
            {"schema": 2},
            {"id": "id-1"},
            {"grants": [grant | {"n": -1}]},
            {"grants": [grant | {"consumer": "x"}]},
        ]
        for fields in wrong:
            stranger.publish(GRANTS, msgspec.json.encode({"schema": 1, "id": "z", "grants": [grant]} | fields))
        await world.clock.run(0.1)
        assert world.ask(1, "a", 1000) == 249
        assert world.counts.all == [("replica_message_unread",)] * 4, "two messages at two replicas"
        assert KEY in world.pulls[0]._trackers, "the message in the name of another replica counted there"
        assert ConsumerKey("S", "x") not in world.pulls[0]._trackers


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize(("mark", "replicas"), [(1, 3), (3, 3), (5, 8), (10, 8)])
async def test_all_requests_at_one_replica_fill_the_room(mark: int, replicas: int, rank: int) -> None:
    """However small it is, whichever replica they come to, and although some is in flight already."""
    async with running(replicas, mark + 1, inflight=1) as world:
        granted, first_at = 0, world.clock.now().mono
        while granted < mark and world.clock.now().mono < first_at + 0.5:
            granted += world.ask(rank, "a", mark)
            await world.clock.run(0.05)
        assert granted == mark


async def test_a_claim_is_sent_rarely_and_only_where_a_share_is_missing() -> None:
    async with running(3, mark=3, inflight=1) as world:
        world.bus.record = True
        assert world.ask(0, "a", 5) == 0
        await world.clock.run(0.01)
        assert [world.ask(0, "b", 5), world.ask(0, "c", 5)] == [0, 0], "others may not know of the claim yet"
        await world.clock.run(0.05)
        assert world.ask(0, "a", 5) + world.ask(0, "b", 5) + world.ask(0, "c", 5) == 2
        await world.clock.run(0.05)
        world.ask(0, "a", 5)
        await world.clock.run(0.05)
        sent = [msgspec.json.decode(payload)["grants"] for _, topic, payload in world.bus.sent if topic == GRANTS]
        assert [[grant["n"] for grant in grants] for grants in sent] == [[0], [1, 1]]


@given(
    rooms=st.lists(st.integers(0, 200), min_size=2, max_size=2).map(sorted),
    replicas=st.integers(1, 9),
    asked=st.sets(st.integers(0, 8)),
)
def test_all_shares_together_are_the_room_and_each_only_grows_with_it(
    rooms: list[int], replicas: int, asked: set[int]
) -> None:
    less, more = ([_shares(replicas, asked, room)[rank] for rank in range(replicas)] for room in rooms)
    asked = {one for one in asked if one < replicas}
    for room, shares in zip(rooms, (less, more), strict=True):
        assert sum(shares) == (room if asked or replicas == 1 else room - min(room, replicas))
    assert all(a <= b for a, b in zip(less, more, strict=True))


def _shares(replicas: int, asked: set[int], room: int) -> list[int]:
    """The share of each replica while all know which of them are asked."""
    shares = []
    for rank in range(replicas):
        known = AskedReplicas()
        for other in sorted(asked - {rank}):
            if other < replicas:
                known.add_other(f"id-{other}", 10.0)
        if rank in asked:
            known.add_own(10.0)
        shares.append(known.share_of(Share(replicas, rank, f"id-{rank}"), room, 10.0 + 2 * UNKNOWN_FOR))
    return shares
