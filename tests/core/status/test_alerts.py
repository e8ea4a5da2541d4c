"""Alerts from pending to resolved, on given values."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status.alert_times import RunKey, aged, running_since, unwatched
from nats_backpressure.core.status.alerts import FORGIVEN, LIMITS, changed_alerts, condition, next_alerts
from nats_backpressure.policy.schema import AlertRule, Policy, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Status

QUIET = Policy(alert_on_active=False)
QUARTERS = st.integers(1, 32).map(lambda n: n / 4)
"""Seconds whose sums are exact."""
LONG = AlertRule("long", When(pending_above=100), for_seconds=10, severity="critical")


def member(name: str = "c", policy: Policy = QUIET, status: Status = Status.UNKNOWN, **reading: object) -> Member:
    measured = Reading(
        ConsumerKey("S", name), Now(0, 0), **{"pending": 0, "inflight": 0, "latency": None, "drain": None, **reading}
    )
    return Member(measured.key, policy, reading=measured, status=status)


class World:
    def __init__(self, *rules: AlertRule) -> None:
        self.policy = msgspec.structs.replace(QUIET, alerts=rules)
        self.standing: tuple[SubjectAlert, ...] = ()
        self.published: list[tuple[str, str]] = []
        self.since: dict[RunKey, float] = {}
        self.at = self.ahead = 0.0
        """When it was last seen, and how far the wall clock is ahead."""

    @property
    def names(self) -> list[str]:
        return [alert.name for alert in self.standing]

    def look(self, at: float, status: Status = Status.INACTIVE, *members: Member) -> dict[str, str]:
        return self.look_at(at, status, [msgspec.structs.replace(one, policy=self.policy) for one in members])

    def look_at(self, at: float, status: Status, members: Sequence[Member]) -> dict[str, str]:
        """The members have policies of their own."""
        was = aged(self.standing, self.since, dict.fromkeys(self.names, at))
        now = next_alerts(was, status, members, Now(at, at + self.ahead))
        self.published += [(alert.name, alert.state) for alert in changed_alerts(was, now)]
        self.standing, self.since = now, running_since(now, self.since, at)
        self.at = at
        return {alert.name: alert.state for alert in now}

    def restart(self, after: float = 0.0) -> None:
        """A new process goes on with what is stored; for so long nobody looked."""
        self.standing = aged(self.standing, self.since, dict.fromkeys(self.names, self.at))
        self.standing = msgspec.json.decode(msgspec.json.encode(self.standing), type=tuple[SubjectAlert, ...])
        self.since = running_since(self.standing, {}, self.at + after)


def test_it_is_pending_until_it_has_held_long_enough_then_fires_then_is_resolved() -> None:
    world = World(LONG)
    over, calm = member(pending=101), member(pending=100)
    states = [
        world.look(at, Status.INACTIVE, m) for at, m in [(0, over), (9.9, over), (10, over), (11, calm), (12, calm)]
    ]
    assert [s.get("long") for s in states] == ["pending", "pending", "firing", "resolved", "resolved"]
    assert world.published == [("long", "firing"), ("long", "resolved")]


@pytest.mark.parametrize(
    ("readings", "fires"),
    [
        ([("S", "a", 5, 0.1), ("S", "b", 1, 0.9)], False),
        ([("S", "a", 1, 0.1), ("S", "b", 5, 0.9)], True),
        ([("S", "a", 5, 0.1), ("T", "b", 1, 0.9)], True),
    ],
    ids=["an older reading of the stream", "the newest one", "another stream"],
)
def test_how_full_a_stream_is_goes_by_its_newest_reading(
    readings: list[tuple[str, str, float, float]], fires: bool
) -> None:
    world = World(AlertRule("fill", When(stream_fill_above=0.5)))
    members = []
    for stream, name, at, fill in readings:
        one = member(stream_fill=fill)
        key = ConsumerKey(stream, name)
        assert one.reading is not None
        reading = msgspec.structs.replace(one.reading, key=key, at=Now(at, at))
        members.append(msgspec.structs.replace(one, key=key, reading=reading))
    assert world.look(100.0, Status.INACTIVE, *members) == ({"fill": "firing"} if fires else {})


def test_a_break_restarts_the_wait_and_reports_nothing() -> None:
    world = World(LONG)
    for at, pending in [(0, 101), (9, 50), (9.5, 101), (19, 101)]:
        world.look(at, Status.INACTIVE, member(pending=pending))
    assert (world.published, world.standing[0].state) == ([], "pending")
    assert world.look(19.5, Status.INACTIVE, member(pending=101)) == {"long": "firing"}


@pytest.mark.parametrize(
    ("when", "status", "reading", "value"),
    [
        (When(status="active"), Status.ACTIVE, {}, "active"),
        (When(status="active"), Status.WARNING, {}, None),
        (When(status="warning"), Status.ACTIVE, {}, "active"),
        (When(status="warning"), Status.INACTIVE, {}, None),
        (When(diagnosis=Diagnosis.POISON), Status.INACTIVE, {"diagnosis": Diagnosis.POISON}, "poison"),
        (When(diagnosis=Diagnosis.POISON), Status.INACTIVE, {"diagnosis": Diagnosis.IDLE}, None),
        (When(pending_above=5), Status.INACTIVE, {"pending": 6}, 6),
        (When(pending_above=5), Status.INACTIVE, {"pending": 5}, None),
        (When(inflight_above=5), Status.INACTIVE, {"inflight": None}, None),
        (When(inflight_above=5), Status.INACTIVE, {"inflight": 6}, 6),
        (When(latency_p95_above_ms=5), Status.INACTIVE, {"p95": 5.5}, 5.5),
        (When(stream_fill_above=0.9), Status.INACTIVE, {"stream_fill": 0.95}, 0.95),
        (When(stream_fill_above=0.9), Status.INACTIVE, {"stream_fill": None}, None),
    ],
)
def test_each_condition(when: When, status: Status, reading: dict[str, object], value: object) -> None:
    world = World(AlertRule("it", when))
    world.look(0, status, member("calm"), member("c", **reading))
    assert [alert.value for alert in world.standing] == ([] if value is None else [value])


def test_the_built_in_two_follow_the_policys_flags() -> None:
    for active, warning, names in ((True, False, ["active"]), (True, True, ["active", "warning"]), (False, False, [])):
        policy = Policy(alert_on_active=active, alert_on_warning=warning, alert_for_seconds=0)
        fired = next_alerts((), Status.ACTIVE, [member(policy=policy)], Now(0, 0))
        assert [alert.name for alert in fired] == [f"backpressure_{name}" for name in names]
        assert next_alerts((), Status.INACTIVE, [member(policy=policy)], Now(0, 0)) == ()


def test_a_rule_with_the_name_of_a_built_in_one_replaces_it() -> None:
    world = World(AlertRule("backpressure_active", When(status="active"), for_seconds=60, severity="critical"))
    world.policy = msgspec.structs.replace(world.policy, alert_on_active=True)
    for at in range(0, 100, 5):
        world.look(at, Status.ACTIVE, member())
    assert world.published == [("backpressure_active", "firing")]
    for at in range(100, 200, 5):
        world.look(at, Status.INACTIVE, member())
    assert world.published == [("backpressure_active", "firing"), ("backpressure_active", "resolved")]


@pytest.mark.parametrize(("on", "off", "fires"), [(3, 2, 1), (1, 9, 1), (1, 11, 0), (9, 11, 0), (11, 11, 3)])
def test_a_status_that_goes_up_and_down_pages_once(on: int, off: int, fires: int) -> None:
    """`on` seconds active and `off` seconds not, three times and more, and then calm."""
    world = World()
    world.policy = Policy()
    seconds = max(40, 3 * (on + off))
    for at in range(seconds + 12):
        busy = at < seconds and at % (on + off) < on
        world.look(at, Status.ACTIVE if busy else Status.INACTIVE, member())
    assert world.published == [("backpressure_active", state) for _ in range(fires) for state in ("firing", "resolved")]


@given(st.lists(st.tuples(st.integers(1, 15), st.booleans()), max_size=30), st.integers(0, 20), st.randoms())
def test_a_built_in_alert_fires_after_its_time_and_is_resolved_after_as_long_a_calm(
    spans: list[tuple[int, bool]], for_seconds: int, dice: random.Random
) -> None:
    """Of any course of the status, with restarts at any time and a wall clock that jumps: two of its events are that
    far apart too. While it is pending, no break of more than ten seconds is forgiven."""
    world, last = World(), -math.inf
    world.policy = Policy(alert_for_seconds=for_seconds)
    course = [busy for seconds, busy in spans for _ in range(seconds)]
    began, calm_since, firing = None, 0, False
    for at, busy in enumerate(course):
        world.ahead = dice.choice([world.ahead, 1e5, 2e5])
        if dice.random() < 0.3:
            world.restart()
        before = len(world.published)
        world.look(at, Status.ACTIVE if busy else Status.INACTIVE, member())
        calm_since = at + 1 if busy else calm_since
        forgiven = for_seconds if firing else min(for_seconds, FORGIVEN)
        if at - calm_since >= forgiven and not busy:
            began = None
        elif busy and began is None:
            began = at
        for _ in world.published[before:]:
            assert at - last >= for_seconds
            last = at
        firing = bool(world.standing) and world.standing[0].state == "firing"
        if busy:
            assert began is not None and firing is (at - began >= for_seconds)
        elif at - calm_since >= for_seconds:
            assert not firing


def test_a_rule_that_goes_resolves_what_fired_by_it() -> None:
    world = World(AlertRule("it", When(pending_above=5)))
    world.look(0, Status.INACTIVE, member(pending=6))
    world.policy = QUIET
    assert world.look(1, Status.INACTIVE, member(pending=6)) == {"it": "resolved"}
    assert world.look(2, Status.INACTIVE, member(pending=6)) == {}
    assert world.published == [("it", "firing"), ("it", "resolved")]


def test_a_rule_whose_consumer_is_not_read_yet_after_a_restart_resolves_nothing() -> None:
    over = member("a", msgspec.structs.replace(QUIET, alerts=(LONG,)), pending=101)
    fired = SubjectAlert("long", "critical", "pending_above: 100", "firing", 0.0, 101.0)
    other = member("b")
    kept = next_alerts((fired,), Status.INACTIVE, [other], Now(9, 9), awaited=True)
    assert kept == (fired,)
    assert [one.state for one in next_alerts(kept, Status.INACTIVE, [other, over], Now(10, 10))] == ["firing"]
    assert [one.state for one in next_alerts(kept, Status.INACTIVE, [other], Now(10, 10))] == ["resolved"]


def test_another_condition_of_the_same_name_is_another_alert() -> None:
    world = World(AlertRule("it", When(pending_above=5)))
    world.look(0, Status.INACTIVE, member(pending=20))
    world.policy = msgspec.structs.replace(QUIET, alerts=(AlertRule("it", When(pending_above=10)),))
    assert world.look(1, Status.INACTIVE, member(pending=20)) == {"it": "resolved"}
    assert world.look(2, Status.INACTIVE, member(pending=20)) == {"it": "firing"}
    assert world.standing[0].when == "pending_above: 10"


@pytest.mark.parametrize("waits", [0, 3600], ids=["firing", "pending"])
def test_another_severity_of_its_rule_is_shown_at_once_and_is_no_event(waits: int) -> None:
    rule = AlertRule("it", When(pending_above=5), for_seconds=waits)
    world, over = World(rule), member(pending=20)
    world.look(0, Status.INACTIVE, over)
    published, was = [*world.published], world.standing[0]
    world.policy = msgspec.structs.replace(QUIET, alerts=(msgspec.structs.replace(rule, severity="page"),))
    world.look(1, Status.INACTIVE, over)
    assert world.standing == (msgspec.structs.replace(was, severity="page", held=1.0 if waits else 0.0),)
    assert world.published == published
    world.look(2, Status.INACTIVE, member())
    assert [(alert.state, alert.severity) for alert in world.standing] == ([] if waits else [("resolved", "page")])


def test_a_severity_that_one_of_its_rules_has_stays_whichever_of_them_is_met() -> None:
    """Else what is stored would change with each reading."""
    world = World()
    policies = [
        msgspec.structs.replace(QUIET, alerts=(AlertRule("q", When(pending_above=5), severity=severity),))
        for severity in ("mild", "bad")
    ]
    shown = set()
    for at in range(20):
        pending = [10 * (at % 3 != 1), 10 * (at % 3 != 2)]
        members = [member(n, p, pending=q) for n, p, q in zip("ab", policies, pending, strict=True)]
        world.look_at(at, Status.INACTIVE, members)
        shown |= {alert.severity for alert in world.standing}
    assert shown == {"mild"} and world.published == [("q", "firing")]


@given(name=st.sampled_from(sorted(LIMITS)), a=st.floats(0, 1e15), b=st.floats(0, 1e15))
def test_two_conditions_that_differ_have_different_texts(name: str, a: float, b: float) -> None:
    texts = [condition(When(**{name: limit})) for limit in (a, b)]
    assert (texts[0] == texts[1]) is (a == b)
    assert [float(text.removeprefix(f"{name}: ")) for text in texts] == [a, b]


def test_a_large_limit_is_shown_in_full_and_one_that_an_earlier_build_stored_with_six_digits_goes_on() -> None:
    limit = 1_234_567
    world = World(AlertRule("it", When(pending_above=limit)))
    over = member(pending=limit + 1)
    world.look(0, Status.INACTIVE, over)
    assert world.standing[0].when == "pending_above: 1234567"
    world.standing = (msgspec.structs.replace(world.standing[0], when="pending_above: 1.23457e+06"),)
    assert world.look(1, Status.INACTIVE, over) == {"it": "firing"}
    assert world.published == [("it", "firing")]


@pytest.mark.parametrize("jump", [-10_000.0, -5.0, 5.0, 10_000.0])
def test_a_wall_clock_that_jumps_neither_fires_early_nor_late(jump: float) -> None:
    world = World(LONG)
    world.ahead = 20_000.0
    world.look(0, Status.INACTIVE, member(pending=101))
    world.ahead += jump
    states = [world.look(at, Status.INACTIVE, member(pending=101))["long"] for at in (1, 9.9, 10)]
    assert states == ["pending", "pending", "firing"]


@given(st.lists(st.tuples(QUARTERS, st.integers(0, 200), st.booleans()), max_size=40))
def test_firing_and_resolved_alternate_and_a_restart_anywhere_changes_nothing(
    moves: list[tuple[float, int, bool]],
) -> None:
    world, steady, at, since = World(LONG), World(LONG), 0.0, None
    for seconds, pending, restart in moves:
        at += seconds
        if restart:
            world.restart()
        before = world.standing
        for one in (world, steady):
            one.look(at, Status.INACTIVE, member(pending=pending))
        since = None if pending <= 100 else at if since is None else since
        assert world.published == steady.published
        state = world.standing[0].state if world.standing else None
        assert (state == "firing") is (since is not None and at - since >= LONG.for_seconds)
        if not changed_alerts(before, world.standing) and state != "pending":
            assert state is None or before == world.standing
    states = [state for _, state in world.published]
    assert states[:1] in ([], ["firing"]) and all(a != b for a, b in pairwise(states))


@pytest.mark.parametrize(
    ("for_seconds", "began", "watched", "fires"),
    [
        pytest.param(0, 100, 100.0, 110, id="found at the start: once it was seen for the grace"),
        pytest.param(0, 40, 100.0, 110, id="stored as pending, before the start"),
        pytest.param(60, 40, 100.0, 110, id="also where it has been so for long enough"),
        pytest.param(60, 100, 100.0, 160, id="a longer wait includes the grace"),
        pytest.param(0, 105, 100.0, 115, id="started soon after the start"),
        pytest.param(0, 110, 100.0, 110, id="started later: at once"),
        pytest.param(30, 110, 100.0, 140, id="started later: after its own wait"),
        pytest.param(0, 100, -math.inf, 100, id="watched for long: at once"),
    ],
)
def test_what_an_absence_has_left_does_not_page(for_seconds: float, began: int, watched: float, fires: int) -> None:
    """`began`, `watched` and `fires` are seconds on the same clock."""
    rule = AlertRule("one", When(pending_above=100), for_seconds=for_seconds, severity="critical")
    policy = msgspec.structs.replace(QUIET, alerts=(rule,))
    standing = (SubjectAlert("one", "critical", "pending_above: 100", "pending", began, 101),)
    since = running_since(standing, {}, began)
    for at in range(max(began, 100), fires + 1):
        now = Now(at, at)
        standing = next_alerts(
            aged(standing, since, {"one": at}),
            Status.ACTIVE,
            [member(policy=policy, pending=101)],
            now,
            False,
            at - watched,
        )
        assert (standing[0].state == "firing") is (at == fires), at


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_wall_clock_that_jumps_ends_no_break_and_prolongs_none(jump: float) -> None:
    """The product's dips of a second: nothing is published in them, whatever the clock is set to."""
    world = World()
    world.policy, world.ahead = Policy(), 10_000.0
    for at in range(12):
        world.look(at, Status.ACTIVE, member())
    assert world.published == [("backpressure_active", "firing")]
    for at in (12, 12.5, 13):
        world.look(at, Status.INACTIVE, member())
        world.ahead += jump if at == 12 else 0.0
    world.look(14, Status.ACTIVE, member())
    assert world.published == [("backpressure_active", "firing")]
    for at in range(20, 31):
        world.ahead += jump * (-1) ** at
        world.look(at, Status.INACTIVE, member())
        assert len(world.published) == (2 if at == 30 else 1), at


@pytest.mark.parametrize("on", [3.0, 12.0], ids=["pending", "firing"])
def test_time_without_a_look_counts_neither_for_a_break_nor_for_what_is_pending(on: float) -> None:
    world = World()
    world.policy = Policy()
    for at in (0.0, on / 2, on):
        world.look(at, Status.ACTIVE, member())
    published = [*world.published]
    world.look(on + 1, Status.INACTIVE, member())
    world.since = unwatched(world.since, 600.0)
    world.look(on + 601.5, Status.INACTIVE, member())
    assert world.published == published and world.standing[0].over_for == 0.5
    world.restart(600.0)
    world.look(on + 1202, Status.INACTIVE, member())
    assert world.published == published and world.standing[0].over_for == 1.0
    assert world.standing[0].held == (0.0 if published else on + 2)


def test_what_another_replica_watched_counts() -> None:
    stored = (SubjectAlert("it", "warning", "pending_above: 5", "pending", 7.0, held=50.0),)
    known = running_since((msgspec.structs.replace(stored[0], held=2.0),), {}, 100.0)
    assert running_since(stored, known, 110.0) == {("it", "pending_above: 5", "held", 7.0): 60.0}
    assert running_since((msgspec.structs.replace(stored[0], held=5.0),), known, 110.0) == known


def test_an_alert_that_was_stored_before_breaks_had_seconds_goes_on() -> None:
    stored = b'[{"name":"a","severity":"s","when":"status: active","state":"firing","since":1.0,"over_since":5.0}]'
    (alert,) = msgspec.json.decode(stored, type=tuple[SubjectAlert, ...])
    assert running_since((alert,), {}, 100.0) == {("a", "status: active", "over_for", 5.0): 100.0}


def test_two_short_overloads_do_not_page_after_minutes() -> None:
    world = World()
    world.policy = Policy(alert_for_seconds=300)
    for at in range(610):
        world.look(at, Status.ACTIVE if at % 300 == 0 else Status.INACTIVE, member())
    assert not world.published
    for at in range(610, 1300):  # with breaks of nine seconds it does
        world.look(at, Status.ACTIVE if at % 10 == 0 else Status.INACTIVE, member())
    assert world.published == [("backpressure_active", "firing")]


SILENT, LOUD = Policy(alert_on_active=False), Policy(alert_for_seconds=10)


@pytest.mark.parametrize("order", [1, -1], ids=["silent last", "silent first"])
def test_a_consumer_without_an_alert_that_becomes_the_worst_ends_none_of_another(order: int) -> None:
    """The one with the alert has dips of a second, in which the other one has the most pressure."""
    world = World()
    for at in range(100):
        status = Status.INACTIVE if at % 5 == 4 or at >= 80 else Status.ACTIVE
        members = [member("a", LOUD, status), member("b", SILENT, Status.INACTIVE)]
        world.look_at(at, status, members[::order])
    assert world.published == [("backpressure_active", "firing"), ("backpressure_active", "resolved")]


def test_an_alert_is_for_the_consumers_whose_policy_has_it() -> None:
    world = World()
    for at in range(30):
        worst = member("b", SILENT, Status.ACTIVE, pending=50)
        world.look_at(at, Status.ACTIVE, [member("a", LOUD, Status.WARNING), worst])
    assert not world.published
    wide = msgspec.structs.replace(SILENT, alerts=(AlertRule("q", When(pending_above=100)),))
    near = msgspec.structs.replace(SILENT, alerts=(AlertRule("q", When(pending_above=5)),))
    for pending in (50, 101, 50):
        world.look_at(world.at + 1, Status.INACTIVE, [member("a", wide, pending=pending), member("b", near)])
    assert world.published == [("q", "firing"), ("q", "resolved")]
    for at in range(100, 130, 10):
        world.look_at(at, Status.INACTIVE, [member("a", wide, pending=50), member("b", near, pending=50)])
    assert world.published[2:] == [("q", "firing")] and world.standing[0].when == "pending_above: 5"


@pytest.mark.parametrize("busy", [("a",), ("b",), ("a", "b")], ids="".join)
def test_of_two_waits_the_one_of_the_consumer_that_is_active_counts(busy: tuple[str, ...]) -> None:
    world = World()
    policies = {"a": Policy(alert_for_seconds=30), "b": Policy(alert_for_seconds=5)}

    def look(at: int, active: bool) -> None:
        statuses = {name: Status.ACTIVE if active and name in busy else Status.INACTIVE for name in policies}
        members = [member(name, policy, statuses[name]) for name, policy in policies.items()]
        world.look_at(at, max(statuses.values()), members)

    for at in range(31):
        look(at, True)
        assert len(world.published) == (at >= (30 if busy == ("a",) else 5))
    for at in range(31, 62):
        look(at, False)
        assert len(world.published) == (2 if at == 61 else 1)
