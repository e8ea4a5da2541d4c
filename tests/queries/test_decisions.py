"""Decisions for gateways: by status, freshness and policy; of several matching subjects the strictest decides."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.core.subject.record import Writing
from nats_backpressure.core.subject.state import SubjectState, with_members
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.requests import GatewayRequest, RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decisions import MATCHED_SHOWN
from tests.fakes.view import (
    NOW,
    OVERLOADED,
    POLICY,
    SUBJECT,
    WATCHING,
    FakeServiceView,
    after,
    decision_service,
    member,
    subject,
)

ASK = GatewayRequest()


def gateway(*states: SubjectState, of: str = SUBJECT, request: GatewayRequest = ASK, now: Now = NOW) -> Any:
    return decision_service(FakeServiceView(*states)).decide_gateway(of, request, now)


def test_an_active_subject_rejects_with_everything_a_gateway_needs() -> None:
    assert msgspec.to_builtins(gateway(subject(member(**OVERLOADED)))) == {
        "subject": SUBJECT,
        "matched": (SUBJECT,),
        "role": "gateway",
        "status": "active",
        "action": "reject",
        "reasons": ("pending", "latency_p95"),
        "pressure": 1.5,
        "retry_after_seconds": 30,
        "max_retry_attempts": 3,
        "backoff_strategy": "exponential",
        "retry_delay_ms": 30_000,
        "admit_ratio": 0.0,
        "pull": None,
        "alert": True,
        "would": None,
        "freshness": "known",
        "sampled_at": "2025-12-31T23:59:59.990Z",
        "valid_for_ms": 500,
        "incident": "k3f9-1",
        "state_keys": (SUBJECT,),
        "event_subjects": (f"backpressure.v1.event.*.{SUBJECT}",),
    }


@pytest.mark.parametrize(
    ("policy", "values", "expected"),
    [
        pytest.param(POLICY, {}, ("inactive", "continue", None, 0, None, False), id="inactive"),
        pytest.param(POLICY, {"pending": 1500}, ("warning", "continue", None, 0, None, False), id="warning"),
        pytest.param(
            Policy(alert_on_warning=True, alert_on_active=False),
            {"pending": 1500},
            ("warning", "continue", None, 0, None, True),
            id="a warning that alerts",
        ),
        pytest.param(
            Policy(alert_on_active=False),
            OVERLOADED,
            ("active", "reject", None, 30, 30_000, False),
            id="active in silence",
        ),
        pytest.param(
            Policy(mode="observe"), OVERLOADED, ("active", "continue", "reject", 0, None, True), id="observed"
        ),
        pytest.param(
            Policy(mode="observe"), {}, ("inactive", "continue", "continue", 0, None, False), id="observed calm"
        ),
    ],
)
def test_the_policy_maps_a_status_to_an_action(policy: Policy, values: dict, expected: tuple) -> None:
    decision = gateway(subject(member(policy=policy, **values)))
    assert (
        decision.status,
        decision.action,
        decision.would,
        decision.retry_after_seconds,
        decision.retry_delay_ms,
        decision.alert,
    ) == expected


@pytest.mark.parametrize(
    ("request_", "action", "delay"),
    [
        pytest.param(GatewayRequest(attempt=2), "reject", 60_000, id="the second attempt waits longer"),
        pytest.param(GatewayRequest(attempt=4), "reject", None, id="past the last attempt"),
        pytest.param(GatewayRequest(attempt=1000), "reject", None, id="far past it"),
        pytest.param(GatewayRequest(priority="high"), "reject", 30_000, id="high is like normal"),
        pytest.param(GatewayRequest(priority="critical"), "continue", None, id="critical continues"),
    ],
)
def test_a_request_has_priority_and_attempt(request_: GatewayRequest, action: str, delay: int | None) -> None:
    decision = gateway(subject(member(**OVERLOADED)), request=request_)
    assert (decision.action, decision.retry_delay_ms, decision.status) == (action, delay, "active")
    assert (decision.admit_ratio, decision.retry_after_seconds) == ((1.0, 0) if action == "continue" else (0.0, 30))


def test_in_observe_mode_a_critical_request_would_continue() -> None:
    decision = gateway(
        subject(member(policy=Policy(mode="observe"), **OVERLOADED)), request=GatewayRequest(priority="critical")
    )
    assert (decision.action, decision.would) == ("continue", "continue")


@pytest.mark.parametrize(
    ("left", "valid"),
    [(0.5, 500), (-3.0, 100), (0.01, 100), (60.0, 5000)],
    ids=["to the next reading", "one overdue", "one very near", "one far away"],
)
def test_a_decision_is_valid_until_the_next_reading(left: float, valid: int) -> None:
    view = FakeServiceView(subject(member()))
    view.next = NOW.mono + left
    assert decision_service(view).decide_gateway(SUBJECT, ASK, NOW).valid_for_ms == valid


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(9.0, ("active", "reject", "known", 1.5), id="known"),
        pytest.param(10.0, ("active", "reject", "stale", 1.5), id="stale: held to the last"),
        pytest.param(11.0, ("active", "throttle", "stale", 1.5), id="held long enough: opening"),
        pytest.param(
            14.0, ("active", "continue", "stale", 1.5), id="open, and the last known status is still answered"
        ),
        pytest.param(31.0, ("unknown", "continue", "unknown", None), id="unknown, and open"),
    ],
)
def test_a_decision_ages_from_known_to_stale_to_unknown(age: float, expected: tuple) -> None:
    decision = gateway(subject(member(age=0.0, **OVERLOADED)), now=after(age))
    assert (decision.status, decision.action, decision.freshness, decision.pressure) == expected
    if decision.status == "unknown":
        assert (decision.reasons, decision.valid_for_ms, decision.alert) == ((), 0, False)


def test_the_oldest_proof_gives_the_age_of_the_decision() -> None:
    decision = gateway(subject(member("a"), member("b", age=12.0)))
    assert (decision.freshness, decision.sampled_at) == ("stale", "2025-12-31T23:59:48.000Z")


@pytest.mark.parametrize(
    ("more", "freshness"),
    [
        pytest.param({"record": None}, "unknown", id="not loaded yet"),
        pytest.param({"unstored": True}, "unknown", id="created and not stored yet: no replica answered it yet"),
        pytest.param({"members": {}}, "unknown", id="the last consumer gone"),
    ],
)
def test_a_status_that_is_not_stored_is_unknown(more: dict, freshness: str) -> None:
    decision = gateway(subject(member(**OVERLOADED), **more))
    assert (decision.status, decision.freshness, decision.reasons, decision.pressure) == (
        "unknown",
        freshness,
        (),
        None,
    )


def test_while_writes_fail_the_last_written_status_is_returned_as_stale() -> None:
    calm = subject(member())
    state = replace(
        subject(member(**OVERLOADED)), record=calm.record, writing=Writing(calm.record, 1, "n", failing=True)
    )
    decision = decision_service(FakeServiceView(state)).status(SUBJECT, NOW)
    assert (decision.status, decision.freshness, decision.stale_reason) == ("inactive", "stale", "no_quorum")
    assert decision.metrics.pending_messages == 1500


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        pytest.param(Policy(), "continue", id="hold, never known"),
        pytest.param(Policy(on_unknown="reject"), "reject", id="reject"),
        pytest.param(Policy(on_unknown="continue"), "continue", id="continue"),
    ],
)
def test_a_subject_that_was_never_known_is_unknown(policy: Policy, action: str) -> None:
    assert gateway(SubjectState(SUBJECT, policy, NOW.mono + 30)).action == action


@pytest.mark.parametrize(
    ("later", "action"), [(0.0, "reject"), (9.0, "reject"), (12.0, "throttle"), (14.0, "continue")]
)
def test_a_rejection_lasts_only_for_the_hold_after_its_last_consumer(later: float, action: str) -> None:
    state = replace(with_members(subject(member(**OVERLOADED)), {}), unread_since=-math.inf, empty_since=NOW.mono)
    assert gateway(state, now=after(later)).action == action


@pytest.mark.parametrize(
    ("since", "on_unknown", "action", "ratio"),
    [
        pytest.param(5.0, "hold", "reject", 0.0, id="held"),
        pytest.param(12.0, "hold", "throttle", 0.5, id="opening"),
        pytest.param(14.0, "hold", "continue", 1.0, id="open"),
        pytest.param(10.0, "continue", "continue", 1.0, id="continue"),
        pytest.param(1000.0, "reject", "reject", 0.0, id="reject"),
    ],
)
def test_a_rejection_opens_even_if_its_end_cannot_be_stored(
    since: float, on_unknown: str, action: str, ratio: float
) -> None:
    """The queue is empty, everybody can see it, and no quorum takes the write that says so."""
    policy = Policy(on_unknown=on_unknown)  # type: ignore[arg-type]
    shut, calm = subject(member(policy=policy, **OVERLOADED)), subject(member(policy=policy))
    assert shut.record is not None and calm.record is not None
    writing = Writing(calm.record, 1, "n", failing=True, started_at=NOW.mono - since)
    decision = gateway(replace(calm, record=shut.record, writing=writing))
    assert (decision.action, decision.admit_ratio, decision.freshness) == (action, ratio, "stale")


def test_an_unreadable_consumer_does_not_open_what_another_one_rejects() -> None:
    decision = gateway(subject(member("unread", age=40.0), member("busy", **OVERLOADED)))
    assert (decision.action, decision.freshness) == ("reject", "stale")
    decision = gateway(subject(member("unread", age=12.0, **OVERLOADED), member("calm")))
    assert (decision.action, decision.admit_ratio, decision.freshness) == ("throttle", 0.5, "stale")


def test_a_new_reading_does_not_restore_an_old_rejection() -> None:
    """It was lost, and so it opened long ago; what the new reading comes to is not stored yet."""
    state = subject(member(**OVERLOADED))
    assert state.record is not None
    decision = gateway(replace(state, record=replace(state.record, unknown=True)))
    assert (decision.action, decision.freshness) == ("continue", "unknown")


@pytest.mark.parametrize(
    ("age", "valid"),
    [
        pytest.param(0.0, 5000, id="while it is fresh, to the next reading"),
        pytest.param(8.0, 2000, id="not beyond the moment at which it opens"),
        pytest.param(9.99, 100, id="which is near"),
        pytest.param(12.0, 100, id="while it opens, as briefly as can be"),
        pytest.param(20.0, 5000, id="open, as long as another"),
        pytest.param(31.0, 0, id="unknown: not at all"),
    ],
)
def test_a_rejection_is_not_valid_past_its_end(age: float, valid: int) -> None:
    view = FakeServiceView(subject(member(age=0.0, **OVERLOADED)))
    view.next = NOW.mono + 1000
    assert decision_service(view).decide_gateway(SUBJECT, ASK, after(age)).valid_for_ms == valid


def test_before_the_first_readings_every_request_gets_503() -> None:
    view = FakeServiceView(subject(member()))
    view.newest_read_at = None
    with pytest.raises(RequestRefused) as refused:
        decision_service(view).decide_gateway(SUBJECT, ASK, NOW)
    assert refused.value.code == 503


@pytest.mark.parametrize("name", ["orders.eu", "orders.*", "orders.eu.created.late", "other"])
def test_an_unwatched_subject_gets_404(name: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        gateway(subject(member(), name="orders.*.created"), of=name)
    assert refused.value.code == 404


def test_every_pattern_that_covers_a_literal_subject_is_used() -> None:
    decision = gateway(
        subject(member(), name="orders.*.created"),
        subject(member(**OVERLOADED), name="orders.>"),
        subject(member(**OVERLOADED), name="orders.us.created"),
        of="orders.eu.created",
    )
    assert (decision.subject, decision.status, decision.action) == ("orders.eu.created", "active", "reject")
    assert decision.matched == ("orders.*.created", "orders.>")
    assert decision.state_keys == ("orders.=2A.created", "orders.=3E")
    assert decision.event_subjects[0] == "backpressure.v1.event.*.orders.=2A.created"


def test_a_watched_pattern_answers_only_for_itself() -> None:
    decision = gateway(
        subject(member(), name="orders.*"), subject(member(**OVERLOADED), name="orders.>"), of="orders.*"
    )
    assert (decision.matched, decision.status) == (("orders.*",), "inactive")


@pytest.mark.parametrize(
    ("one", "other", "decides"),
    [
        pytest.param({"pending": 1500}, OVERLOADED, "a.>", id="the strictest action"),
        pytest.param(
            OVERLOADED | {"policy": WATCHING}, {"pending": 1500}, "a.*", id="of equal actions the worse status"
        ),
        pytest.param({"pending": 1500}, {"pending": 1600}, "a.>", id="of equal statuses the higher pressure"),
        pytest.param({"pending": 1500, "policy": WATCHING}, {"pending": 1500}, "a.>", id="enforcing before observing"),
        pytest.param(
            OVERLOADED | {"policy": WATCHING}, OVERLOADED, "a.>", id="a real rejection before an observed one"
        ),
        pytest.param({}, {}, "a.*", id="of equals the first by name"),
    ],
)
def test_the_strictest_of_several_decides(one: dict, other: dict, decides: str) -> None:
    states = [subject(member(**one), name="a.*"), subject(member(**other), name="a.>")]
    decision = decision_service(FakeServiceView(*states)).status("a.b", NOW)
    expected = decision_service(FakeServiceView(*states)).status(decides, NOW)
    assert replace(expected, subject="a.b", matched=decision.matched, state_keys=decision.state_keys,
                   event_subjects=decision.event_subjects) == decision  # fmt: skip
    assert decision.matched == ("a.*", "a.>")


def test_a_subject_that_is_added_later_is_used() -> None:
    view = FakeServiceView(subject(member(), name="a.*"))
    decisions = decision_service(view)
    assert decisions.decide_gateway("a.b", ASK, NOW).matched == ("a.*",)
    view.subjects["a.>"] = subject(member(), name="a.>")
    assert decisions.decide_gateway("a.b", ASK, NOW).matched == ("a.*", "a.>")


def test_a_changed_state_gives_a_new_decision() -> None:
    view = FakeServiceView(subject(member()))
    decisions = decision_service(view)
    assert decisions.decide_gateway(SUBJECT, ASK, NOW).status == "inactive"
    view.subjects[SUBJECT] = subject(member(**OVERLOADED))
    assert decisions.decide_gateway(SUBJECT, ASK, NOW).status == "active"


def test_listed_matches_are_limited_but_all_are_evaluated() -> None:
    calm = [subject(member(), name=".".join("*" if n >> bit & 1 else "t" for bit in range(9))) for n in range(1, 500)]
    decision = gateway(*calm, subject(member(**OVERLOADED), name="t.>"), of="t." * 8 + "t")
    assert len(decision.matched) == len(decision.state_keys) == MATCHED_SHOWN
    assert decision.action == "reject"
