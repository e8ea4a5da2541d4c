"""How much a consumer may pull: the room, its fair share, and what happens without acks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.grant_shares import ALONE
from nats_backpressure.core.admission.open_grants import UNSEEN_LIFE
from nats_backpressure.core.admission.pull_grants import (
    LONGEST_WAIT,
    SHORTEST_WAIT,
    Grant,
)
from nats_backpressure.core.admission.requesters import GRANT_LIFE, MOST_GONE, OTHERS_FOR, Requesters
from nats_backpressure.core.model.member import Latch, Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import thresholds
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.requests import Due
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.granting_tracker import GrantingTracker

KEY = ConsumerKey("S", "c")
POLICY = Policy()


def reading(inflight: int | None, at: float = 100.0, **more) -> Reading:
    return Reading(KEY, Now(at, at), 1000, inflight, None, None, **more)


def member(reading: Reading, latches: Latches | None = None, policy: Policy = POLICY) -> Member:
    return Member(
        KEY,
        policy,
        latches=latches or Latches(),
        reading=reading,
        proof=reading.at.mono,
        marks=thresholds.marks(policy, reading),
    )


def ask(member: Member, asked: int = 100, *, asker: str = "a", at: float = 100.0, replicas: int = 1) -> Grant:
    return GrantingTracker().grant(member, asked, asker, at, replicas, 0.5)


HELD = Latches(inflight=Latch(on=True))
SLOW = Latches(latency_p95=Latch(on=True))


@pytest.mark.parametrize(
    ("inflight", "more", "latches", "asked", "n"),
    [
        pytest.param(0, {}, None, 100, 100, id="with room, what was asked"),
        pytest.param(450, {}, None, 100, 50, id="no more than the room under the overload mark"),
        pytest.param(499, {}, None, 100, 1, id="the last one"),
        pytest.param(500, {"ack_rate": 10.0}, None, 100, 0, id="at the mark there is no room"),
        pytest.param(700, {"ack_rate": 10.0}, None, 100, 0, id="above the mark neither"),
        pytest.param(240, {}, HELD, 100, 10, id="with in flight latched, up to the release mark"),
        pytest.param(240, {}, SLOW, 100, 10, id="with latency latched too"),
        pytest.param(300, {}, HELD, 100, 0, id="between release and overload mark a latch leaves no room"),
        pytest.param(80, {"cap": 100}, None, 100, 10, id="the mark is below the cap"),
        pytest.param(0, {"cap": 1}, None, 100, 1, id="a cap of one leaves one"),
        pytest.param(1, {"cap": 1}, None, 100, 0, id="and no second"),
        pytest.param(13, {"cap": 15}, None, 100, 0, id="a mark of 13.5 has no room for a fourteenth: it would latch"),
        pytest.param(None, {}, None, 77, 77, id="where nothing is acknowledged, what was asked"),
        pytest.param(0, {"cap": 1}, HELD, 100, 1, id="with nothing in flight and nothing granted, never 0"),
    ],
)
def test_the_room(inflight: int | None, more: dict, latches: Latches | None, asked: int, n: int) -> None:
    assert ask(member(reading(inflight, **more), latches), asked).n == n


def test_a_long_queue_alone_holds_nobody_back() -> None:
    latches = Latches(pending=Latch(on=True), pending_alone=Latch(on=True), drain=Latch(on=True))
    assert ask(member(reading(0), latches)).n == 100


def test_a_recovery_threshold_of_zero_still_lets_the_queue_empty() -> None:
    policy = Policy(recovery_threshold=0.0)
    assert ask(member(reading(0), HELD, policy)).n == 1


def test_replicas_that_cannot_see_each_other_share_the_room() -> None:
    assert ask(member(reading(400)), replicas=3).n == 33


def test_a_grant_counts_until_it_is_seen_as_delivered() -> None:
    tracker, consumer = GrantingTracker(), member(reading(0, delivered_consumer=7))
    assert tracker.grant(consumer, 400, "a", 100.0, 1, 0.5).n == 400
    assert tracker.grant(consumer, 400, "b", 100.1, 1, 0.5).n == 50
    seen = member(reading(300, at=100.2, delivered_consumer=307))
    # 300 are in flight, 100 of the first and 50 of the second grant are still to come: room for 50, half of it for one.
    assert tracker.grant(seen, 400, "b", 100.2, 1, 0.5).n == 25
    assert tracker.grant(seen, 400, "b", 100.2, 1, 0.5).n == 13


def test_a_grant_counts_for_a_second_when_nothing_is_delivered() -> None:
    tracker = GrantingTracker()
    tracker.grant(member(reading(0)), 400, "a", 100.0, 1, 0.5)
    assert tracker.grant(member(reading(0, at=100.9)), 400, "a", 100.99, 1, 0.5).n == 100
    tracker = GrantingTracker()
    tracker.grant(member(reading(0)), 400, "a", 100.0, 1, 0.5)
    assert tracker.grant(member(reading(0, at=101.0)), 400, "a", 101.0, 1, 0.5).n == 400


def test_a_pull_in_the_last_moment_of_its_second_counts_until_a_reading_shows_it() -> None:
    tracker = GrantingTracker()
    tracker.grant(member(reading(0)), 400, "a", 100.0, 1, 0.5)
    assert tracker.grant(member(reading(0, at=100.95)), 400, "a", 101.0, 1, 0.5).n == 100
    tracker = GrantingTracker()
    tracker.grant(member(reading(0)), 400, "a", 100.0, 1, 0.5)
    assert tracker.grant(member(reading(0)), 400, "a", 102.0, 1, 0.5).n == 400, "but not for ever without readings"


def test_a_consumer_created_again_removes_no_grants() -> None:
    tracker = GrantingTracker()
    tracker.grant(member(reading(0, delivered_consumer=900)), 400, "a", 100.0, 1, 0.5)
    assert tracker.grant(member(reading(0, delivered_consumer=0)), 400, "a", 100.1, 1, 0.5).n == 100


def test_nobody_takes_more_than_half_while_another_asks() -> None:
    tracker, consumer = GrantingTracker(), member(reading(399))
    assert tracker.grant(consumer, 100, "a", 100.0, 1, 0.5).n == 100
    tracker = GrantingTracker()
    assert tracker.offer(consumer, Asked(100, "a"), 100.0, ALONE, 0.5).n == 100
    assert tracker.offer(consumer, Asked(100, "b"), 100.5, ALONE, 0.5).n == 51, "half of 101, rounded up"
    assert tracker.offer(consumer, Asked(100, "a"), 100.9, ALONE, 0.5).n == 51
    assert tracker.offer(consumer, Asked(100, "a"), 101.4, ALONE, 0.5).n == 51, "b requested 0.9 s ago"
    assert tracker.offer(consumer, Asked(100, "a"), 101.5, ALONE, 0.5).n == 100, "b requested a second ago"


def test_of_three_askers_none_is_alone() -> None:
    tracker, consumer = GrantingTracker(), member(reading(400))
    for n, asker in enumerate("abcabcabc"):
        assert tracker.offer(consumer, Asked(100, asker), 100.0 + n / 10, ALONE, 0.5).n == (100 if n == 0 else 50)


def test_those_that_ask_once_each_leave_no_part_of_the_mark_unused() -> None:
    """A worker, or a connection, for each message: none of those before comes back for its part."""
    tracker, small = GrantingTracker(), Policy(inflight=InflightRule(warn=10, critical=20, overload=40))
    for n in range(40):
        at = 100.0 + n / 20
        consumer = member(reading(0, at=at, delivered_consumer=10 * n), policy=small)  # done at once
        assert tracker.grant(consumer, 10, f"asker-{n}", at, 1, 0.5).n == 10


@given(
    asked=st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 10_000), st.sampled_from("abc")), max_size=60),
    inflight=st.integers(0, 600),
)
def test_what_is_granted_at_one_reading_never_exceeds_the_room(asked: list, inflight: int) -> None:
    tracker, consumer, at, total = GrantingTracker(), member(reading(inflight, ack_rate=5.0)), 100.0, 0
    for after, n, asker in asked:
        at += after
        if at >= 101.0:
            return
        total += tracker.grant(consumer, n, asker, at, 1, 0.5).n
    assert total <= max(0, 500 - inflight)


@given(st.integers(0, 10_000), st.one_of(st.none(), st.floats(0, 1e9)), st.floats(0, 1), st.integers(1, 10_000))
def test_a_refused_client_gets_the_time_to_return(inflight: int, rate: float | None, jitter: float, asked: int) -> None:
    grant = GrantingTracker().grant(member(reading(inflight, ack_rate=rate)), asked, "a", 100.0, 1, jitter)
    assert 0 <= grant.n <= asked
    assert grant.wait == 0 if grant.n else SHORTEST_WAIT <= grant.wait <= LONGEST_WAIT


def test_the_wait_is_as_long_as_acks_need_to_make_room() -> None:
    slow, fast = (ask(member(reading(520, ack_rate=rate))).wait for rate in (30.0, 300.0))
    assert (slow, fast) == (pytest.approx(0.7 * 0.85), pytest.approx(0.07 * 0.85))


def test_refused_askers_are_spread_even_at_the_longest_wait() -> None:
    consumer = member(reading(900))
    waits = {GrantingTracker().grant(consumer, 1, "a", 100.0, 1, jitter).wait for jitter in (0.0, 0.5, 1.0)}
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("stall", "age", "ack_wait", "n"),
    [
        pytest.param(4900.0, 0.0, 30.0, 0, id="acks moved less than 5 s ago"),
        pytest.param(5000.0, 0.0, 30.0, 1, id="none moved for 5 s"),
        pytest.param(4000.0, 1.0, 30.0, 1, id="the age of the reading counts"),
        pytest.param(1900.0, 0.0, 2.0, 0, id="less than a short ack wait"),
        pytest.param(2000.0, 0.0, 2.0, 1, id="a short ack wait"),
    ],
)
def test_somebody_must_pull_once_no_ack_moves(stall: float, age: float, ack_wait: float, n: int) -> None:
    consumer = member(reading(600, stall=stall, ack_wait=ack_wait), HELD)
    assert ask(consumer, at=100.0 + age).n == n


def test_without_acks_it_is_one_message_per_wait() -> None:
    tracker, consumer = GrantingTracker(), member(reading(600, stall=9000.0), HELD)
    times = [100.0 + n / 20 for n in range(101)]
    granted = [at for at in times if tracker.grant(consumer, 10, "a", at, 1, 1.0).n]
    assert granted == [pytest.approx(100.0 + n) for n in range(6)]


def test_of_a_consumer_that_acknowledges_all_before_what_a_worker_holds_is_not_known() -> None:
    """It does not see that a later ack was one of the earlier messages, too."""
    policy = Policy(inflight=InflightRule(10, 10, 10))
    tracker = GrantingTracker()
    granted = [
        tracker.grant(member(reading(0, 100.0 + n, acks_all=True), policy=policy), 4, "a", 100.0 + n, 1, 0.5, held=9).n
        for n in range(5)
    ]
    assert granted == [4] * 5


def test_somebody_must_pull_once_no_ack_moves_also_where_all_hold_their_part() -> None:
    """Or nothing that they hold and forgot is ever delivered again."""
    policy = Policy(inflight=InflightRule(5, 5, 5))
    tracker = GrantingTracker()
    granted = dict.fromkeys("ab", 0)
    for n in range(40):
        at = 100.0 + n / 4
        consumer = member(reading(4, at, ack_rate=0.0, stall=1000.0 * n / 4), policy=policy)
        for asker in granted:
            granted[asker] += tracker.grant(consumer, 10, asker, at, 1, 0.5, held=2).n
    assert sum(granted.values()) >= 1


@pytest.mark.parametrize(("inflight", "n"), [(0, 4), (3, 2), (5, 0)])
def test_what_a_worker_holds_is_no_more_than_what_is_in_flight(inflight: int, n: int) -> None:
    """Or one that keeps messages that were purged, or that reached max_deliver, is granted nothing any more."""
    policy, tracker = Policy(inflight=InflightRule(5, 5, 5)), GrantingTracker()
    for at in (100.0, 103.0):
        grant = tracker.grant(member(reading(inflight, at, ack_rate=1.0), policy=policy), 4, "a", at, 1, 0.5, held=100)
    assert grant.n == n


def test_with_nothing_in_flight_and_an_old_reading_one_message_is_granted_whatever_a_worker_holds() -> None:
    """What it pulled lately may not be in the reading, and not in what is granted any more."""
    consumer, tracker = member(reading(0, 100.0), policy=Policy(inflight=InflightRule(5, 5, 5))), GrantingTracker()
    granted = [tracker.grant(consumer, 4, "a", at, 1, 0.5, held=5).n for at in (103.0, 104.0, 105.1, 106.0)]
    assert granted == [1, 0, 1, 0]


@pytest.mark.parametrize("ack_wait", [1.0, 30.0, 300.0])
def test_messages_reported_as_lost_count_for_an_ack_wait_however_often_some_are_reported(ack_wait: float) -> None:
    requesters = Requesters()
    for n in range(int(10 * 3 * ack_wait)):
        at = 100.0 + n / 10
        requesters.ask(Asked(1, "a", held=0, lost=1), reading(0, ack_wait=ack_wait), at)
    assert requesters._excess(at) == pytest.approx(10 * max(OTHERS_FOR, ack_wait), rel=0.05)


def test_lost_messages_are_remembered_in_bounds_whatever_their_delays() -> None:
    requesters = Requesters()
    for n in range(3 * MOST_GONE):
        requesters.ask(Asked(1, "a", held=0, lost=1, due=(Due(1, 1000 * n),)), reading(0, ack_wait=1.0), 100.0)
    assert len(requesters._gone) == MOST_GONE
    assert requesters._excess(100.0) == 3 * MOST_GONE


def test_who_never_acknowledges_what_it_says_it_will_takes_no_more_than_another_part() -> None:
    """It took all that max_ack_pending allows, in a few questions."""
    consumer, tracker, held = member(reading(0), policy=Policy(inflight=InflightRule(12, 12, 12))), GrantingTracker(), 0
    for n in range(20):
        tracker.grant(consumer, 6, "honest", 100.0 + n / 100, 1, 0.5, held=0, unused=6)
        held += tracker.grant(consumer, 6, "other", 100.0 + n / 100, 1, 0.5, held, 0, 0, held).n
    assert held <= 12


def test_a_quote_counts_nothing() -> None:
    tracker, consumer = GrantingTracker(), member(reading(600, stall=9000.0), HELD)
    assert [tracker.offer(consumer, Asked(10, "a"), 100.0, ALONE, 0.5).n for _ in range(3)] == [1, 1, 1]


@pytest.mark.no_cover  # traced, it takes four times as long
def test_what_is_remembered_is_bounded() -> None:
    tracker, consumer = GrantingTracker(), member(reading(0), policy=Policy(inflight=InflightRule(1, 1, 1e15)))
    for n in range(20_000):
        tracker.grant(consumer, 1, f"asker-{n}", 100.0 + n / 10_000, 1, 0.5)
    for n in range(1, 1001):
        consumer = member(reading(0, at=100.0 + n / 500, delivered_consumer=n))
        tracker.offer(consumer, Asked(1, "a"), 101.99, ALONE, 0.5)
    assert len(tracker._grants._counted) <= 64 + 101 and len(tracker._grants._delivered) <= 41


def test_what_was_granted_and_not_used_is_free_again_after_a_second_however_busy_it_is() -> None:
    """Two of twenty were there to be had; from then on each grant is taken up at once."""
    policy = Policy(inflight=InflightRule(5, 10, 30))
    tracker, at, delivered = GrantingTracker(), 100.0, 0
    tracker.grant(member(reading(0, at, delivered_consumer=0), policy=policy), 20, "a", at, 1, 0.5)
    delivered, given = 2, []
    for _ in range(15):
        at += 0.1
        consumer = member(reading(5, at, delivered_consumer=delivered), policy=policy)
        given.append(tracker.grant(consumer, 10, "a", at, 1, 0.5).n)
        delivered += given[-1]
    assert (given[0], given[-1]) == (7, 10)


def test_while_pulls_wait_at_the_server_the_oldest_grant_is_taken_to_be_served_first() -> None:
    tracker = GrantingTracker()
    tracker.grant(member(reading(0, 100.0, waiting=2, delivered_consumer=0)), 10, "a", 100.0, 1, 0.5)
    tracker.grant(member(reading(0, 100.9, waiting=2, delivered_consumer=0)), 10, "a", 100.9, 1, 0.5)
    full = member(reading(485, 101.3, waiting=1, delivered_consumer=10))
    assert tracker.grant(full, 100, "a", 101.3, 1, 0.5).n == 5


def test_what_was_delivered_is_not_taken_off_a_grant_that_may_still_be_pulled() -> None:
    """a pulls late. Taken off the newest, b's deliveries would leave a's 100 uncounted while a can still pull them."""
    tracker, at = GrantingTracker(), 100.0
    tracker.grant(member(reading(0, at)), 100, "a", at, 1, 0.5)
    for n in range(1, 9):
        at += 0.1
        tracker.grant(member(reading(0, at, delivered_consumer=10 * (n - 1))), 10, "b", at, 1, 0.5)
    consumer = member(reading(0, 100.9, delivered_consumer=80))
    assert tracker.offer(consumer, Asked(1000, "b"), 100.9, ALONE, 0.5).n == 200, "half of 500 less the 100 of a"


def test_while_pulls_wait_a_newer_grant_of_the_same_connection_ends_none() -> None:
    tracker, consumer = GrantingTracker(), member(reading(0, waiting=3))
    assert [tracker.grant(consumer, 200, "a", 100.0 + n / 10, 1, 0.5).n for n in range(3)] == [200, 200, 100]
    assert tracker.offer(member(reading(0, 100.5, waiting=3)), Asked(200, "a"), 100.5, ALONE, 0.5).n == 0
    assert tracker.offer(member(reading(0, 100.6)), Asked(500, "a"), 100.6, ALONE, 0.5).n == 400, (
        "none waits: only the newest counts"
    )


MOMENTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3]),
        st.sampled_from(["ask", "pull", "read"]),
        st.integers(0, 3),
        st.integers(0, 6),
    ),
    max_size=60,
)


@given(MOMENTS)
@example([(0.0, "ask", 0, 0), (0.0, "pull", 0, 1), (0.0, "ask", 0, 0), (0.0, "read", 3, 0)])
def test_what_may_still_be_pulled_is_counted_however_grants_are_used(moments: list) -> None:
    """By a client that pulls within a second and requests again only after that, with a reading every second."""
    tracker, at, delivered, left = GrantingTracker(), 100.0, 0, {}
    consumer = member(reading(0, at, delivered_consumer=0))
    for after, move, who, n in moments:
        at += after
        overdue = at - consumer.reading.at.mono > UNSEEN_LIFE - GRANT_LIFE - 0.3
        if move == "read" or overdue:
            consumer = member(reading(0, at, delivered_consumer=delivered))
        if move == "ask":
            given = tracker.grant(consumer, n + 1, str(who), at, 1, 0.5).n
            left[who] = (given, at) if given else left.get(who, (0, at))
        elif move == "pull" and who in left and at < left[who][1] + GRANT_LIFE:
            took = min(n, left[who][0])
            delivered += took
            left[who] = (left[who][0] - took, left[who][1])
        counted = tracker._grants.outstanding(consumer.reading, at)
        unread = delivered - consumer.reading.delivered_consumer
        assert counted >= unread + sum(n for n, since in left.values() if at < since + GRANT_LIFE)


def asks(
    tracker: GrantingTracker, asker: str, held: int, ahead: int = 0, *, mark: int, inflight: int, at: float
) -> int:
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    one = member(reading(inflight, at), policy=policy)
    return tracker.grant(one, 10, asker, at, 1, 0.5, held=held, ahead=ahead).n


@pytest.mark.parametrize(("ahead", "n"), [(0, 1), (1, 2)])
def test_who_asks_before_its_last_message_is_done_gets_its_whole_part(ahead: int, n: int) -> None:
    tracker = GrantingTracker()
    for asker in ("a", "b"):
        asks(tracker, asker, 0, mark=4, inflight=0, at=100.0)
    for asker in ("a", "b"):
        asks(tracker, asker, 1, mark=4, inflight=2, at=101.0)
    assert asks(tracker, "a", 1, ahead, mark=4, inflight=3, at=102.5) == n
    assert asks(tracker, "b", 2, mark=4, inflight=4, at=102.6) == 0, "what a may hold, it does not get"


def test_who_asks_before_it_is_done_takes_no_place_of_one_that_waits() -> None:
    tracker = GrantingTracker()
    assert [asks(tracker, asker, 0, mark=1, inflight=0, at=100.0) for asker in ("a", "b")] == [1, 0]
    assert asks(tracker, "a", 1, 1, mark=1, inflight=1, at=100.5) == 0
    assert asks(tracker, "b", 0, mark=1, inflight=0, at=101.0) == 1
