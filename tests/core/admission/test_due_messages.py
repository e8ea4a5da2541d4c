"""What certainly comes back with the next pulls, and so adds nothing to what is in flight."""

from __future__ import annotations

import pytest

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.due_messages import MOST_SLOTS, DueMessages
from nats_backpressure.core.admission.grant_shares import ALONE
from nats_backpressure.core.model.member import Latch, Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import thresholds
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.requests import Due
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.granting_tracker import GrantingTracker

KEY = ConsumerKey("S", "c")


def reading(at: float, inflight: int = 5, delivered: int = 100, **more) -> Reading:
    return Reading(KEY, Now(at, at), 1000, inflight, None, None, delivered_consumer=delivered, ack_rate=1.0, **more)


@pytest.mark.parametrize(
    ("at", "seen", "held", "n"),
    [
        pytest.param(100.9, reading(100.9), 0, 0, id="the delay is not over"),
        pytest.param(101.3, reading(101.3), 0, 3, id="it is over"),
        pytest.param(101.3, reading(100.5), 0, 3, id="since the reading"),
        pytest.param(101.5, reading(101.5, delivered=102), 0, 1, id="two were delivered since: they may be of these"),
        pytest.param(101.5, reading(101.5, inflight=2), 0, 2, id="no more than is in flight"),
        pytest.param(101.5, reading(101.5), 4, 1, id="beside what is held"),
        pytest.param(101.5, reading(101.5, inflight=6), 0, 0, id="over the mark one was not due"),
        pytest.param(101.5, reading(101.5, delivered=7), 0, 0, id="of a consumer that was created again, none"),
    ],
)
def test_how_many_are_due(at: float, seen: Reading, held: int, n: int) -> None:
    due = DueMessages()
    due.read(reading(100.0))
    due.add(3, 1.0, 100.0)
    due.count(reading(101.25) if at > 101.3 else seen, 0, 5, at - 0.01)
    assert due.count(seen, held, 5, at) == n


def test_those_that_come_later_are_none_of_those_in_flight_that_are_due() -> None:
    """Of three that were delivered before we took them for due, and returned again."""
    due = DueMessages()
    due.read(reading(100.0))
    due.add(3, 1.0, 100.0)
    due.add(4, 9.0, 101.0)
    assert due.count(reading(101.3), 0, 5, 101.3) == 1


@pytest.mark.parametrize(
    ("seen", "coming"),
    [
        pytest.param(reading(100.5, inflight=35), 35, id="as long as they are in flight"),
        pytest.param(reading(100.5, inflight=4), 4, id="some were purged"),
        pytest.param(reading(100.5, inflight=0), 0, id="all of them, or acknowledged by hand"),
        pytest.param(reading(99.9, inflight=0), 35, id="a reading from before does not show them"),
        pytest.param(reading(100.5, inflight=35, delivered=500, made=2), 0, id="of a consumer that was made again"),
    ],
)
def test_no_more_come_back_than_a_later_reading_shows_in_flight(seen: Reading, coming: int) -> None:
    due = DueMessages()
    due.read(reading(99.0, inflight=35))
    due.add(35, 3600.0, 100.0)
    due.read(seen)
    assert due.coming(100.6) == due.surely_coming(100.6) == coming


def test_those_that_are_told_twice_are_no_more_than_are_in_flight() -> None:
    due = DueMessages()
    due.read(reading(99.0, inflight=20))
    for n in range(4):
        due.add(20, 10.0, 100.0 + n)
    due.read(reading(104.0, inflight=20))
    assert due.coming(104.0) == 20


def test_what_may_have_come_back_already_is_coming_at_most_and_not_surely() -> None:
    due = DueMessages()
    due.add(10, 0.1, 100.0)
    assert (due.coming(100.05), due.surely_coming(100.05)) == (10, 0)


def test_what_is_remembered_is_bounded() -> None:
    due = DueMessages()
    for n in range(10_000):
        due.add(1, n / 3, 100.0)
    assert len(due._coming) == MOST_SLOTS


@pytest.mark.parametrize(
    ("due", "n"),
    [
        pytest.param((Due(5, 1000),), 5, id="as many as were returned with a delay"),
        pytest.param((Due(2, 1000), Due(3)), 2, id="of dropped ones none before the ack wait"),
        pytest.param((Due(2, 1000),), 2, id="nor of those of which it tells nothing"),
        pytest.param((Due(2, 1000), Due(3, 25_000)), 2, id="of others that come back later, none"),
        pytest.param((Due(9, 1000),), 5, id="no more than were lost"),
        pytest.param(None, 0, id="of one that does not tell which they are, none"),
    ],
)
def test_what_is_due_is_granted_once_where_it_fills_the_mark(due: tuple[Due, ...] | None, n: int) -> None:
    policy, tracker = Policy(inflight=InflightRule(5, 5, 5)), GrantingTracker()

    def ask(at: float, lost: int = 0, due: tuple[Due, ...] | None = None) -> int:
        seen = reading(at, ack_wait=30.0)
        member = Member(KEY, policy, reading=seen, proof=at, marks=thresholds.marks(policy, seen))
        return tracker.grant_to(Asked(10, "a", 0, 0, lost, due=due), member, at, 0.5).n

    ask(99.9)
    assert ask(100.0, 5, due) == 0
    assert [ask(101.3), ask(101.31)] == [n, 0]


BACKOFF = {"ack_wait": 9.0, "backoff": (1.0, 5.0, 9.0)}


@pytest.mark.parametrize(
    ("due", "config", "seconds"),
    [
        pytest.param(Due(1), {"ack_wait": 7.0}, 7.0, id="dropped: after the ack wait"),
        pytest.param(Due(1, deliveries=9), {"ack_wait": 7.0}, 7.0, id="which is the same each time"),
        pytest.param(Due(1, 2500), {"ack_wait": 7.0}, 2.5, id="returned: after its delay"),
        pytest.param(Due(1), BACKOFF, 1.0, id="with backoff, dropped at first"),
        pytest.param(Due(1, deliveries=2), BACKOFF, 5.0, id="at its second delivery"),
        pytest.param(Due(1, deliveries=7), BACKOFF, 9.0, id="at any later one"),
        pytest.param(Due(1, 2500), BACKOFF, 2.5, id="with backoff, returned at first"),
        pytest.param(Due(1, 2500, 2), BACKOFF, 6.5, id="later the server adds to the delay"),
        pytest.param(Due(1, 500, 2), {"ack_wait": 5.0, "backoff": (5.0, 1.0)}, 0.0, id="never less than none"),
    ],
)
def test_when_a_message_comes_back(due: Due, config: dict, seconds: float) -> None:
    told = Asked(1, "a", lost=3, due=(due,)).come_back(reading(100.0, **config))
    assert told == [(1, seconds), (2, config["ack_wait"])]


@pytest.mark.parametrize(
    ("held", "due", "plain", "n"),
    [
        pytest.param(0, (Due(4, 9000),), False, 5, id="they come back later"),
        pytest.param(0, (), False, 5, id="nobody holds them"),
        pytest.param(4, (), False, 1, id="they are held"),
        pytest.param(0, (), True, 2, id="one that reports nothing may hold them"),
        pytest.param(0, (Due(4, 9000),), True, 5, id="but not what comes back later"),
    ],
)
def test_while_a_latch_is_set_what_nobody_works_on_takes_no_room(
    held: int, due: tuple[Due, ...], plain: bool, n: int
) -> None:
    """30 that died with an outsider kept six workers from the 10 that were left of a mark of 40, for an ack wait."""
    policy, tracker = Policy(inflight=InflightRule(10, 10, 10)), GrantingTracker()
    seen = reading(100.0, inflight=4)
    latches = Latches(inflight=Latch(on=True))
    member = Member(KEY, policy, reading=seen, proof=100.0, marks=thresholds.marks(policy, seen), latches=latches)
    if plain:
        tracker.offer(member, Asked(1, "b"), 99.0, ALONE, 0.5)
    tracker.grant_to(Asked(10, "a", held=held), member, 99.0, 0.5)
    lost = sum(one.n for one in due)
    assert tracker.grant_to(Asked(10, "a", 9, held, lost, due=due), member, 100.1, 0.5).n == n
