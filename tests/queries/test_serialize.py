"""Messages built from the state: statuses, recoveries, stored states, and numbers that JSON can carry."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.subject.record import Recoveries, Writing
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import parse_rfc3339
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.queries import serialize
from tests.fakes.view import NOW, OVERLOADED, POLICY, SUBJECT, FakeServiceView, decision_service, member, subject


def test_a_status_message_is_complete() -> None:
    message = msgspec.to_builtins(
        decision_service(FakeServiceView(subject(member(**OVERLOADED), member("b")))).status(SUBJECT, NOW)
    )
    assert message["levels"] == {
        "pending": "overload",
        "inflight": "warn",
        "latency_p95": "overload",
        "drain": "normal",
    }
    assert (message["metrics"]["pending_messages"], message["metrics"]["latency_p95_ms"]) == (1500, 6000.0)
    assert message["thresholds"]["queue_overload"] == 1000
    assert message["since"] == "2025-12-31T23:59:00.000Z"
    assert [(c["consumer"], c["status"], c["latched"]) for c in message["consumers"]] == [
        ("c", "active", ("pending", "latency_p95")),
        ("b", "inactive", ()),
    ]
    assert (message["diagnosis"], message["override"], message["age_ms"], message["mode"]) == (
        None,
        None,
        10,
        "enforce",
    )
    assert message["policy"]["pending"].items() >= {"warn": 10, "critical": 100, "overload": 1000}.items()


def test_whole_numbers_are_written_without_decimals() -> None:
    policy = Policy(
        pending=msgspec.convert({"warn": 10.0, "critical": 100.5, "overload": 1000.0}, type(POLICY.pending))
    )
    message = msgspec.json.encode(
        decision_service(FakeServiceView(subject(member(policy=policy, cap=100)))).status(SUBJECT, NOW).thresholds
    )
    assert b'"queue_warn":10,"queue_critical":100.5,"queue_overload":1000,' in message
    assert b'"inflight_overload":90,' in message


def test_a_status_lists_the_worst_twenty_consumers() -> None:
    state = subject(*(member(f"c{n:02}", pending=n) for n in range(50)))
    message = decision_service(FakeServiceView(state)).status(SUBJECT, NOW)
    assert [c.consumer for c in message.consumers] == [f"c{n}" for n in range(49, 29, -1)]
    assert message.consumers_total == 50


def test_a_recovery_is_the_last_incident() -> None:
    state = subject(member())
    ended = Recoveries("k3f9-1", NOW.wall - 90, NOW.wall - 30, 3, 120.0)
    message = (
        decision_service(FakeServiceView(replace(state, record=replace(state.record, recoveries=ended))))
        .status(SUBJECT, NOW)
        .recovery
    )
    assert msgspec.to_builtins(message) == {
        "recovered": True,
        "recovery_time": "2025-12-31T23:59:30.000Z",
        "incident": "k3f9-1",
        "duration_ms": 60_000,
        "recoveries_total": 3,
        "mean_time_to_recover_ms": 40_000,
    }


def test_a_stored_state_is_decoded_as_it_was() -> None:
    state = subject(member(**OVERLOADED))
    record = replace(state.record, latched=((ConsumerKey("S", "c"), ("pending", "latency_p95")),))
    value = serialize.state_value(state, Writing(record, 1, "w.1"), FakeServiceView(state), NOW)
    assert record_of(value) == (record, "w.1")
    plain = msgspec.json.decode(value)
    assert not {"policy", "recovery", "age_ms"} & plain.keys()
    assert (plain["action"], plain["freshness"], plain["status"]) == ("reject", "known", "active")


def test_a_lost_subject_is_stored_as_unknown_with_its_last_status() -> None:
    state = subject(member(**OVERLOADED))
    record = replace(state.record, unknown=True, reasons=())
    value = serialize.state_value(state, Writing(record, 1, "w.1"), FakeServiceView(state), NOW)
    plain = msgspec.json.decode(value)
    assert (plain["status"], plain["record"]["status"], plain["freshness"], plain["pressure"]) == (
        "unknown",
        Status.ACTIVE,
        "unknown",
        None,
    )
    assert record_of(value) == (record, "w.1")


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 5))
def test_every_number_in_a_message_is_finite(value: float, digits: int) -> None:
    rounded = serialize.round_finite(value, digits)
    assert msgspec.json.decode(msgspec.json.encode(rounded)) == rounded


@given(st.floats(0, 4e9))
def test_a_formatted_time_is_the_nearest_millisecond(unix: float) -> None:
    """So an event has the same time in memory and read from the stream."""
    text = serialize.format_time(unix)
    assert text is not None and round(1000 * (parse_rfc3339(text) or 0.0)) == round(1000 * unix)
