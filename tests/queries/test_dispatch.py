"""Each endpoint has its answer, and decisions are counted under watched subjects only."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.messages import Forgotten, Pull
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, RequestRefused
from nats_backpressure.queries.dispatch import answers
from tests.fakes.view import NOW, OVERLOADED, SUBJECT, FakeServiceView, decision_service, member, subject


class Counted:
    """The decisions that were counted."""

    def __init__(self) -> None:
        self.decisions: list[tuple[str, str, str, str | None]] = []

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None) -> None:
        assert seconds >= 0
        self.decisions.append((subject, role, action, would))


def decide(counted: Counted, endpoint: str, of: str, request: Any, *states: SubjectState) -> Any:
    history: Any = None
    view = FakeServiceView(*states)
    table = answers(decision_service(view), history, counted, view)
    return table[endpoint](of, request, "client", NOW)


@pytest.mark.parametrize(
    ("endpoint", "request_", "role", "action"),
    [
        pytest.param("decide-gateway", GatewayRequest(), "gateway", "reject", id="gateway"),
        pytest.param("decide-consumer", ConsumerRequest(), "consumer", "continue", id="consumer"),
    ],
)
def test_a_decision_is_returned_and_counted(endpoint: str, request_: Any, role: str, action: str) -> None:
    counted = Counted()
    decision = decide(counted, endpoint, SUBJECT, request_, subject(member(**OVERLOADED)))
    assert (decision.role, decision.action) == (role, action)
    assert counted.decisions == [(SUBJECT, role, action, None)]
    preview = decide(counted, endpoint, SUBJECT, replace(request_, preview=True), subject(member(**OVERLOADED)))
    assert preview == decision and len(counted.decisions) == 1, "what only people look at is not counted"


def test_the_last_question_of_one_that_ends_is_granted_nothing_and_not_counted() -> None:
    counted, request = Counted(), ConsumerRequest(held=0, leaving=True)
    decision = decide(counted, "decide-consumer", SUBJECT, request, subject(member(inflight=0)))
    assert decision.pull == Pull(0, 0) and not counted.decisions


@pytest.mark.parametrize(
    ("watched", "label"),
    [
        pytest.param(["orders.*"], "orders.*", id="the only pattern that matches"),
        pytest.param(["orders.>", "orders.*"], "orders.*", id="the pattern that decides"),
    ],
)
def test_a_decision_for_an_unwatched_subject_counts_for_a_watched_one(watched: list[str], label: str) -> None:
    counted = Counted()
    states = [subject(member(**(OVERLOADED if name == label else {})), name=name) for name in watched]
    decide(counted, "decide-gateway", "orders.eu", GatewayRequest(), *states)
    assert counted.decisions == [(label, "gateway", "reject", None)]


def test_every_endpoint_has_an_answer() -> None:
    history: Any = None
    table = answers(decision_service(FakeServiceView()), history, Counted(), FakeServiceView())
    assert set(table) == {
        *("decide-gateway", "decide-consumer", "status", "status-list", "policy", "validate-policy", "events"),
        *("history", "metrics", "recovery", "alerts", "alerts-list", "forget"),
    }


def test_only_a_subject_without_consumers_is_forgotten() -> None:
    history: Any = None
    view = FakeServiceView(subject(member()), subject(name="gone"))
    view.gone.add("gone")
    forget = answers(decision_service(view), history, Counted(), view)["forget"]
    assert forget("gone", None, "client", NOW) == Forgotten("gone")
    with pytest.raises(RequestRefused, match="has consumers") as refused:
        forget(SUBJECT, None, "client", NOW)
    assert refused.value.code == 409
    with pytest.raises(RequestRefused, match="is not watched") as refused:
        forget("gone", None, "client", NOW)
    assert refused.value.code == 404
    assert list(view.subjects) == [SUBJECT]
