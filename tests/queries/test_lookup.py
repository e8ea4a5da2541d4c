"""A watched literal subject answers for itself; among all watched subjects that match, the strictest decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.subject.record import Recoveries, Totals
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import AdmissionRule, Policy
from nats_backpressure.protocol.metrics_windows import MetricsRequest
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.requests import ConsumerRequest, EventsRequest, GatewayRequest, HistoryRequest
from nats_backpressure.protocol.strictness import STRICTNESS
from nats_backpressure.protocol.values import Action, ConsumerKey
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.event_cache import EventCache
from nats_backpressure.queries.history import HistoryQueries
from nats_backpressure.queries.lookup import SubjectLookup
from tests.fakes.event_log import T0, FakeEventLog, encoded_event
from tests.fakes.view import NOW, OVERLOADED, WATCHING, FakeServiceView, decision_service, member, subject
from tests.queries.test_history import Clock

POLICIES = [
    Policy(),
    WATCHING,
    Policy(retry_after_seconds=7),
    Policy(admission=AdmissionRule("adaptive", floor=0.01)),
    Policy(admission=AdmissionRule("adaptive", floor=0.4)),
]
VALUES: list[dict[str, Any]] = [
    {},
    {"pending": 5},
    {"pending": 1500},
    {"pending": 20_000},
    {"inflight": 499},
    OVERLOADED,
]
AGES = st.sampled_from([0.01, 12.0, 40.0])
NAMES = ["a.b", "a.c", "a.*", "*.b", "a.>", ">", "x.y"]


@st.composite
def states(draw: st.DrawFn) -> list[SubjectState]:
    """Watched subjects, literals and patterns, each with a past of its own."""
    answer: list[SubjectState] = []
    for n, name in enumerate(draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))):
        policy = draw(st.sampled_from(POLICIES))
        count = draw(st.integers(0, 2))
        members: list[Member] = [
            member(f"c{n}-{i}", policy=policy, age=draw(AGES), **draw(st.sampled_from(VALUES))) for i in range(count)
        ]
        state = subject(*members, name=name, policy=policy)
        share = draw(st.sampled_from([1.0, 0.9, 0.5, 0.45, 0.02]))
        assert state.record is not None
        record = replace(
            state.record,
            recoveries=Recoveries(f"i{n}", NOW.wall - 9, NOW.wall - 1, n, 8.0 * n),
            totals=Totals(n, 10 + n, 20 + n, NOW.wall - n),
            alerts=(SubjectAlert(f"alert-{n}", "critical", "x", "firing", NOW.wall),),
        )
        answer.append(replace(state, record=record, shedding=replace(state.shedding, ratio=share)))
    return answer


def decisions(*answer: SubjectState) -> DecisionService:
    return decision_service(FakeServiceView(*answer))


@given(states())
async def test_a_watched_subject_answers_every_request_for_itself(watched: list[SubjectState]) -> None:
    for state in watched:
        name, alone, among = state.subject, FakeServiceView(state), FakeServiceView(*watched)
        log = FakeEventLog(
            tuple(encoded_event(n, T0 - 1000, "active", subject=each.subject) for n, each in enumerate(watched, 1))
        )
        one, many = (
            HistoryQueries(decision_service(view), view, EventCache(T0), log, Clock()) for view in (alone, among)
        )
        status = decision_service(among).status(name, NOW)
        same = {field: getattr(status, field) for field in ("matched", "state_keys", "event_subjects")}
        assert status == replace(decision_service(alone).status(name, NOW), **same)
        policies = [decision_service(view).policy(name, NOW) for view in (among, alone)]
        assert replace(policies[0], matched=()) == replace(policies[1], matched=())
        assert decision_service(among).alias(name, NOW) == decision_service(alone).alias(name, NOW)
        for events in (EventsRequest(), EventsRequest(limit=1)):
            assert await many.events(name, events, NOW) == await one.events(name, events, NOW)
        assert await many.history(name, HistoryRequest(), NOW) == await one.history(name, HistoryRequest(), NOW)
        assert many.recovery(name, NOW) == one.recovery(name, NOW)
        assert many.alerts(name, NOW) == one.alerts(name, NOW)
        assert many.metrics(name, MetricsRequest(("1m",)), NOW) == one.metrics(name, MetricsRequest(("1m",)), NOW)


@given(states(), st.sampled_from(["a.b", "a.c"]), st.sampled_from(["low", "normal", "high", "critical"]))
def test_no_decision_is_less_strict_than_one_of_those_that_match(
    watched: list[SubjectState], asked: str, priority: Any
) -> None:
    matching = [state for state in watched if covers(state.subject, asked)]
    if not matching:
        return
    request = GatewayRequest(priority=priority)
    decision = decisions(*watched).decide_gateway(asked, request, NOW)
    alone = [decisions(state).decide_gateway(state.subject, request, NOW) for state in matching]

    def strict(one: Any) -> tuple[int, float]:
        return STRICTNESS[Action(one.action)], -one.admit_ratio

    assert strict(decision) == max(map(strict, alone))
    assert set(decision.matched) == {state.subject for state in matching}
    pull = decisions(*watched).decide_consumer(asked, ConsumerRequest(), "_INBOX.a", NOW).pull
    each = [
        decisions(state).decide_consumer(state.subject, ConsumerRequest(), "_INBOX.a", NOW).pull for state in matching
    ]
    enforced = [p for p, s in zip(each, matching, strict=True) if s.policy.mode == "enforce"]
    assert pull is not None and all(p is not None and pull.max_messages <= p.max_messages for p in enforced)


@pytest.mark.parametrize("other", ["a.*", "a.>", "*.b", ">"])
@pytest.mark.parametrize("values", [{}, {"pending": 1500}, OVERLOADED])
def test_of_equally_strict_subjects_the_literal_decides(other: str, values: dict[str, Any]) -> None:
    own, covering = subject(member(**values), name="a.b"), subject(member(**values), name=other)
    own = replace(own, record=replace(own.record, incident="mine"))
    covering = replace(covering, record=replace(covering.record, incident="theirs"))
    answer = decisions(covering, own)
    decision = answer.decide_gateway("a.b", GatewayRequest(), NOW)
    assert (decision.incident, decision.matched) == ("mine", ("a.b", other))
    assert SubjectLookup(FakeServiceView(covering, own)).names("a.b") == ["a.b", other]
    assert answer.decide_consumer("a.b", ConsumerRequest(), "_INBOX.a", NOW).incident == "mine"


def test_an_unwatched_literal_is_shown_as_the_pattern_that_decides() -> None:
    answer = decisions(subject(member(), name="a.*"), subject(member("d", **OVERLOADED), name="a.>"))
    status = answer.status("a.b", NOW)
    assert (status.status, status.matched) == ("active", ("a.*", "a.>"))
    assert [c.consumer for c in status.consumers] == [ConsumerKey("S", "d").consumer]
    assert answer.shown("a.b", NOW).state.subject == "a.>"


def test_what_other_policies_judged_is_answered_as_it_is_stored() -> None:
    """Also where the policies here would answer otherwise: all replicas give the same answer."""
    rejecting = subject(member(**OVERLOADED))
    assert rejecting.record is not None
    foreign = replace(rejecting, record=replace(rejecting.record, policy_mark="other"), policy=WATCHING)
    foreign = replace(foreign, worst=member(**OVERLOADED, policy=WATCHING))
    decision = decision_service(FakeServiceView(foreign)).decide_gateway(foreign.subject, GatewayRequest(), NOW)
    assert (decision.action, decision.would) == ("reject", None)
    ours = replace(foreign, record=replace(rejecting.record, policy_mark=FakeServiceView().policies.mark))
    decision = decision_service(FakeServiceView(ours)).decide_gateway(ours.subject, GatewayRequest(), NOW)
    assert (decision.action, decision.would) == ("continue", "reject")


def test_a_report_counts_once_for_each_subject_that_it_is_about() -> None:
    """A gateway reports a request for each state that governs it: for `a.b` and, in another report, for `a.*`."""
    lookup = SubjectLookup(FakeServiceView(subject(name="a.b"), subject(name="a.*")))
    assert lookup.names_reported("a.b") == ["a.b"]
    assert lookup.names_reported("a.*") == lookup.names_reported("a.c") == ["a.*"]
    assert lookup.names_reported("x") == []
