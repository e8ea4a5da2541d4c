"""Decisions for consumers: how much to pull, and when to request again."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.messages import Pull
from nats_backpressure.protocol.requests import ConsumerRequest, RequestRefused
from nats_backpressure.queries.lookup import FULLEST
from tests.fakes.view import NOW, SUBJECT, WATCHING, FakeServiceView, decision_service, member, subject

TAKE = ConsumerRequest()


def consumer(*states: SubjectState, of: str = SUBJECT, request: ConsumerRequest = TAKE) -> Any:
    return decision_service(FakeServiceView(*states)).decide_consumer(of, request, "_INBOX.a", NOW)


def test_a_consumer_gets_the_number_of_messages_to_pull() -> None:
    decision = consumer(subject(member(inflight=450)))
    assert (decision.role, decision.action, decision.pull) == ("consumer", "throttle", Pull(50, 0))
    assert (decision.admit_ratio, decision.retry_after_seconds, decision.retry_delay_ms, decision.valid_for_ms) == (
        1.0,
        0,
        None,
        0,
    )


def test_without_room_a_consumer_gets_the_time_to_wait() -> None:
    decision = consumer(subject(member(inflight=500, ack_rate=10.0)))
    assert (decision.action, decision.pull.max_messages) == ("reject", 0)
    assert 50 <= decision.pull.wait_ms <= 1000


def test_a_long_queue_does_not_limit_pulls() -> None:
    decision = consumer(subject(member(pending=20_000)))
    assert (decision.status, decision.action, decision.pull.max_messages) == ("active", "continue", 100)


def test_the_smallest_room_is_granted_unless_a_consumer_is_named() -> None:
    state = subject(member("a", inflight=450), member("b", inflight=490), member("c", stream="T"))
    assert consumer(state).pull.max_messages == 10
    assert consumer(state, request=ConsumerRequest(consumer="a")).pull.max_messages == 50
    assert consumer(state, request=ConsumerRequest(stream="T")).pull.max_messages == 100
    assert consumer(state, request=ConsumerRequest(stream="S", consumer="b")).pull.max_messages == 10


@pytest.mark.parametrize("named", [{"consumer": "x"}, {"stream": "X"}, {"stream": "T", "consumer": "c"}])
def test_an_unknown_consumer_gets_404(named: dict) -> None:
    with pytest.raises(RequestRefused) as refused:
        consumer(subject(member("c")), request=ConsumerRequest(**named))
    assert refused.value.code == 404


def test_a_grant_counts_once_with_each_consumer_it_may_be_for() -> None:
    both = subject(member("a", inflight=300), member("b", inflight=100), name="s.*")
    one = subject(member("b", inflight=100), name="s.>")
    decisions = decision_service(FakeServiceView(both, one))
    first = decisions.decide_consumer("s.x", ConsumerRequest(max_messages=1000), "_INBOX.a", NOW)
    assert first.pull.max_messages == 200
    second = decisions.decide_consumer("s.x", ConsumerRequest(max_messages=1000, consumer="b"), "_INBOX.a", NOW)
    assert second.pull.max_messages == 200, "300 of room less the 200 that may be taken from b"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"inflight": 450}, "throttle", id="throttle"),
        pytest.param({"inflight": 600}, "reject", id="reject"),
        pytest.param({"inflight": 0}, "continue", id="continue"),
    ],
)
def test_in_observe_mode_consumers_pull_what_they_ask_for(values: dict, expected: str) -> None:
    decision = consumer(subject(member(policy=WATCHING, **values)))
    assert (decision.action, decision.pull.max_messages, decision.would) == ("continue", 100, expected)


@pytest.mark.parametrize("pending", [0, 900, 2_000], ids=["calm", "more pressure", "active"])
@pytest.mark.parametrize("observed", [0, 900, 2_000], ids=["calm", "more pressure", "active"])
def test_a_grant_goes_by_the_mode_of_its_own_consumer_whichever_is_the_worst(pending: int, observed: int) -> None:
    state = subject(
        member("real", pending=pending, inflight=450),
        member("trial", pending=observed, inflight=480, policy=WATCHING),
    )
    real = consumer(state, request=ConsumerRequest(consumer="real"))
    assert (real.pull.max_messages, real.would) == (50, None)
    trial = consumer(state, request=ConsumerRequest(consumer="trial"))
    assert (trial.pull.max_messages, trial.would) == (100, "throttle")
    assert consumer(state).pull.max_messages == 50, "a dry run limits nobody"


@pytest.mark.parametrize(
    ("named", "asked_at_most"),
    [
        pytest.param({}, FULLEST, id="nothing"),
        pytest.param({"stream": "S"}, FULLEST, id="a stream"),
        pytest.param({"consumer": "c7"}, 2, id="a consumer, of any stream"),
        pytest.param({"stream": "S", "consumer": "c7"}, 1, id="one consumer"),
    ],
)
def test_a_pull_request_asks_few_consumers_whatever_it_names(named: dict, asked_at_most: int) -> None:
    state = subject(*(member(f"c{n}", stream=of, inflight=n) for of in ("S", "T") for n in range(300)))
    decisions = decision_service(FakeServiceView(state))
    asked = []
    decisions.grants.on_grant = lambda key, n, by: asked.append(key)
    decision = decisions.decide_consumer(SUBJECT, ConsumerRequest(max_messages=400, **named), "_INBOX.a", NOW)
    assert 0 < len(set(asked)) <= asked_at_most
    assert decision.pull.max_messages == (400 if "consumer" in named else 201), "the fullest are asked"


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(subject(member(inflight=900, age=11.0)), id="stale"),
        pytest.param(subject(member(inflight=900, age=31.0)), id="unknown"),
        pytest.param(subject(), id="without consumers"),
        pytest.param(subject(member(inflight=900), record=None), id="not loaded"),
        pytest.param(subject(member(inflight=None)), id="nothing to acknowledge"),
    ],
)
def test_without_fresh_readings_pulls_are_not_limited(state: SubjectState) -> None:
    assert consumer(state).pull == Pull(100, 0)


def test_a_stale_consumer_does_not_remove_the_limit_of_another() -> None:
    state = subject(member("a", inflight=600), member("b", age=12.0))
    assert consumer(state, request=ConsumerRequest(consumer="a")).action == "reject"
    assert consumer(state, request=ConsumerRequest(consumer="b")).action == "continue"


def test_of_many_consumers_the_fullest_limit_the_grant() -> None:
    state = subject(*(member(f"c{n}", inflight=n) for n in range(400)), member("full", inflight=495))
    assert consumer(state).pull.max_messages == 5
    assert consumer(state, request=ConsumerRequest(consumer="c1")).pull.max_messages == 100


def test_a_preview_is_what_would_be_granted_and_reserves_nothing() -> None:
    """An operator's `decide consumer` takes nothing from a worker."""
    decisions = decision_service(FakeServiceView(subject(member("c", inflight=450))))
    request = ConsumerRequest(max_messages=10_000)
    decisions.decide_consumer(SUBJECT, ConsumerRequest(max_messages=10), "_INBOX.b", NOW)
    shared: list[object] = []
    decisions.grants.on_grant = lambda *grant: shared.append(grant)
    previews = [
        decisions.decide_consumer(SUBJECT, replace(request, preview=True), f"_INBOX.{asker}", NOW).pull
        for asker in "bxyb"
    ]
    assert not shared and previews[0] == previews[3] == Pull(40, 0)
    assert decisions.decide_consumer(SUBJECT, request, "_INBOX.b", NOW).pull == Pull(40, 0) and shared
