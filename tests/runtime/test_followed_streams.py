"""Followed streams: what all of them together mean for a subject."""

from __future__ import annotations

import pytest

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.protocol.between_replicas import ALL_UNREAD
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream, FollowedStreams
from nats_backpressure.runtime.member_index import MemberIndex
from tests.fakes.clock import FakeClock

ALONE = 0.5
"""Seconds between two readings of a subject without members."""


class World:
    """Streams that were all read, with the members of a test."""

    def __init__(self) -> None:
        self.clock, self.members = FakeClock(), MemberIndex()
        self.streams = FollowedStreams(self.members, self.clock, Observe(min_interval_ms=100))
        self.streams.listed = True

    def follow(self, name: str, *subjects: str, origin: str | None = None, interval: float = 1.0) -> FollowedStream:
        look = StreamLook(name, "t", 0, 0, 0, subjects, origin=origin)
        stream = FollowedStream(look, self.clock.now().mono + interval, interval=interval, seen=True, whole=True)
        self.streams[name] = stream
        return stream


@pytest.mark.parametrize("attribute", ["seen", "whole"])
def test_a_stream_counts_for_the_subjects_it_may_hold_if_it_is_watched(attribute: str) -> None:
    world = World()

    def is_known(subject: str) -> bool:
        streams = world.streams
        return not streams.may_hold_unread(subject) if attribute == "seen" else streams.are_read_whole(subject)

    assert is_known("orders.x")
    stream = world.follow("S", "orders.>")
    assert is_known("orders.x")
    setattr(stream, attribute, None)
    assert not is_known("orders.x") and is_known("bills.x")
    stream.watched = False  # only the store knows members of it
    assert is_known("orders.x")
    world.streams.listed = False
    assert not is_known("orders.x")


def test_a_mirror_holds_the_subjects_of_its_origin() -> None:
    world = World()
    mirror = world.follow("M", origin="S")
    mirror.seen = False
    assert world.streams.may_hold_unread("bills.x")  # its origin is not listed: it may hold anything
    world.streams.origins = {"S": ("orders.>",)}
    assert world.streams.subjects_of(mirror.look) == ("orders.>",)
    assert world.streams.may_hold_unread("orders.x") and not world.streams.may_hold_unread("bills.x")


def test_a_subject_is_read_as_often_as_the_slowest_stream_of_its_members() -> None:
    world = World()
    streams = world.streams
    assert (streams.interval("s", ALONE), streams.next_reading("s"), streams.longest_interval()) == (ALONE, None, 0.0)
    for name in "ST":
        world.members.add("s", ConsumerKey(name, "a"))
    assert (streams.interval("s", ALONE), streams.next_reading("s"), streams.longest_interval()) == (0.1, None, 0.1)
    world.follow("S", interval=2.0)
    world.follow("T", interval=5.0)
    world.follow("without members", interval=9.0)
    assert (streams.interval("s", ALONE), streams.longest_interval()) == (5.0, 5.0)
    assert streams.next_reading("s") == world.clock.now().mono + 2.0


def test_the_absent_members_of_a_subject_are_those_of_the_streams_of_its_members() -> None:
    world, absent = World(), ConsumerKey("S", "b")
    world.members.add("s", ConsumerKey("S", "a"))
    world.follow("S").absent = {absent: 1.0}
    world.follow("T").absent = {ConsumerKey("T", "c"): 1.0}
    assert world.streams.absent_members("s") == {absent} and world.streams.absent_members("t") == frozenset()


def test_looks_are_those_of_the_followed_streams() -> None:
    world = World()
    stream = world.follow("S", "a")
    assert world.streams.looks() == {"S": stream.look}


async def test_however_often_unread_streams_are_asked_for_they_are_looked_for_ten_times_a_second() -> None:
    world, searches = World(), list[float]()
    search = world.streams._unread_of

    def counted(late: float) -> tuple[str, ...]:
        searches.append(late)
        return search(late)

    world.streams._unread_of = counted  # type: ignore[method-assign]
    world.follow("S").plan = plan = StreamPlan(Budget(0.1, 2.0, 100, 0.1))
    assert world.streams.unread() == ("S",)
    plan.answered = True
    for _ in range(100):
        world.streams.unread()
        await world.clock.run(0.01)
    assert world.streams.unread() == () and len(searches) <= 11


def test_all_streams_are_unread_until_they_were_listed() -> None:
    world = World()
    world.streams.listed = False
    assert world.streams.unread() == ALL_UNREAD
