"""What is said of a subject, its policy and its recovery, and what is stored of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.subject.state import Recoveries, Writing
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Override, Policy
from nats_backpressure.protocol.requests import ListRequest
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.queries import serialize
from nats_backpressure.queries.decisions import DecisionService, validate_policy
from tests.fakes.view import NOW, OVERLOADED, POLICY, SUBJECT, WrittenBook, member, subject


def test_a_status_tells_the_whole_story() -> None:
    found = msgspec.to_builtins(
        DecisionService(WrittenBook(subject(member(**OVERLOADED), member("b")))).status(SUBJECT, NOW)
    )
    assert found["levels"] == {"pending": "overload", "inflight": "warn", "latency_p95": "overload", "drain": "normal"}
    assert (found["metrics"]["pending_messages"], found["metrics"]["latency_p95_ms"]) == (1500, 6000.0)
    assert found["thresholds"]["queue_overload"] == 1000
    assert found["since"] == "2025-12-31T23:59:00.000Z"
    assert [(c["consumer"], c["status"], c["latched"]) for c in found["consumers"]] == [
        ("c", "active", ("pending", "latency_p95")),
        ("b", "inactive", ()),
    ]
    assert (found["diagnosis"], found["override"], found["age_ms"], found["mode"]) == (None, None, 10, "enforce")
    assert found["policy"]["pending"].items() >= {"warn": 10, "critical": 100, "overload": 1000}.items()


def test_whole_numbers_are_written_as_such() -> None:
    policy = Policy(
        pending=msgspec.convert({"warn": 10.0, "critical": 100.5, "overload": 1000.0}, type(POLICY.pending))
    )
    found = msgspec.json.encode(
        DecisionService(WrittenBook(subject(member(policy=policy, cap=100)))).status(SUBJECT, NOW).thresholds
    )
    assert b'"queue_warn":10,"queue_critical":100.5,"queue_overload":1000,' in found
    assert b'"inflight_overload":90,' in found


@pytest.mark.parametrize(
    ("values", "metrics", "thresholds"),
    [
        pytest.param({}, (0, 0, 0), (1000, 5000, 500), id="idle: what the router answers there"),
        pytest.param({"latency": 1354.9, "inflight": None}, (0, 1355, 0), (1000, 5000, 500), id="ack none"),
        pytest.param(
            {"latency": float("nan"), "cap": 55}, (0, 0, 0), (1000, 5000, 49), id="a mark between two numbers"
        ),
    ],
)
def test_the_alias_answers_whole_numbers_as_the_router_does(
    values: dict[str, Any], metrics: tuple[int, ...], thresholds: tuple[int, ...]
) -> None:
    data = DecisionService(WrittenBook(subject(member(**values)))).alias(SUBJECT, NOW)["data"]
    found = tuple(data["metrics"].values()), tuple(data["thresholds"].values())
    assert found == (metrics, thresholds)
    assert all(type(number) is int for numbers in found for number in numbers)


@pytest.mark.parametrize(("lasts", "stored", "told"), [(60.0, (), ("override",)), (-1.0, ("override",), ())])
def test_an_override_is_a_reason_from_its_first_moment_to_its_last_whatever_is_stored(
    lasts: float, stored: tuple[str, ...], told: tuple[str, ...]
) -> None:
    policy = replace(POLICY, override=(Override("reject", NOW.wall + lasts),))
    state = subject(member(policy=policy))
    desk = DecisionService(WrittenBook(replace(state, record=replace(state.record, reasons=stored))))
    found = desk.status(SUBJECT, NOW)
    assert (found.reasons, found.override is not None) == (told, bool(told))


def test_a_status_shows_the_worst_twenty() -> None:
    state = subject(*(member(f"c{n:02}", pending=n) for n in range(50)))
    found = DecisionService(WrittenBook(state)).status(SUBJECT, NOW)
    assert [c.consumer for c in found.consumers] == [f"c{n}" for n in range(49, 29, -1)]
    assert found.consumers_total == 50


def test_a_recovery_is_the_last_incident() -> None:
    state = subject(member())
    ended = Recoveries("k3f9-1", NOW.wall - 90, NOW.wall - 30, 3, 120.0)
    found = (
        DecisionService(WrittenBook(replace(state, record=replace(state.record, recoveries=ended))))
        .status(SUBJECT, NOW)
        .recovery
    )
    assert msgspec.to_builtins(found) == {
        "recovered": True,
        "recovery_time": "2025-12-31T23:59:30.000Z",
        "incident": "k3f9-1",
        "duration_ms": 60_000,
        "recoveries_total": 3,
        "mean_time_to_recover_ms": 40_000,
    }


def test_a_list_is_sorted_and_paged() -> None:
    desk = DecisionService(WrittenBook(*(subject(member(), name=name) for name in ("c", "a", "b"))))
    first = desk.status_list(ListRequest(limit=2), NOW)
    assert ([s.subject for s in first.subjects], first.total, first.next_offset) == (["a", "b"], 3, 2)
    last = desk.status_list(ListRequest(offset=2, limit=2), NOW)
    assert ([s.subject for s in last.subjects], last.next_offset) == (["c"], None)
    assert desk.status_list(ListRequest(offset=9), NOW).subjects == ()


def test_a_list_ends_where_no_message_could_hold_more() -> None:
    crowd = [member(f"consumer-number-{n}") for n in range(20)]
    desk = DecisionService(WrittenBook(*(subject(*crowd, name=f"s{n:04}") for n in range(300))))
    found = desk.status_list(ListRequest(limit=1000), NOW)
    assert 2**20 < len(msgspec.json.encode(found)) < 2**20 + 20_000
    assert found.next_offset == len(found.subjects) < 300


def test_a_policy_names_its_sources_and_the_consumers_that_differ() -> None:
    entries = (
        PolicyEntry(("beamline.>",), ("*",), (("retry_after_seconds", 7),)),
        PolicyEntry((SUBJECT,), ("slow",), (("retry_after_seconds", 9),)),
    )
    found = DecisionService(WrittenBook(subject(member("c"), member("slow")), policies=entries)).policy(SUBJECT, NOW)
    assert (found["policy"]["retry_after_seconds"], found["sources"]["retry_after_seconds"]) == (7, "file")
    assert found["sources"]["pending.warn"] == "default"
    assert [(c["consumer"], c["policy"]["retry_after_seconds"]) for c in found["consumers"]] == [("slow", 9)]


def test_a_policy_document_is_tried_over_the_default() -> None:
    good, bad = validate_policy({"retry_after_seconds": 7}), validate_policy({"pending": {"warn": 5000}})
    assert (good["valid"], good["errors"], good["effective"]["retry_after_seconds"]) == (True, [], 7)
    assert (bad["valid"], bad["effective"], [e["path"] for e in bad["errors"]]) == (False, None, ["pending.warn"])


def test_the_router_gets_its_established_answer() -> None:
    found = DecisionService(WrittenBook(subject(member(**OVERLOADED)))).alias(SUBJECT, NOW)
    assert found == {
        "success": True,
        "data": {
            "subject": SUBJECT,
            "status": "active",
            "metrics": {"pending_messages": 1500, "latency_p95_ms": 6000, "inflight_messages": 100},
            "thresholds": {"queue_overload": 1000, "latency_overload_ms": 5000, "inflight_overload": 500},
            "policy": {"retry_after_seconds": 30, "max_retry_attempts": 3},
            "timestamp": 1_767_225_600_000,
        },
    }


@pytest.mark.parametrize("swept", [NOW.mono, None], ids=["unwatched", "before the first sweep"])
def test_the_router_is_told_of_what_it_cannot_know(swept: float | None) -> None:
    book = WrittenBook()
    book.swept_at = swept
    data = DecisionService(book).alias("nobody", NOW)["data"]
    assert (data["status"], set(data["metrics"].values()), data["thresholds"]["queue_overload"]) == (
        "unknown",
        {None},
        1000,
    )


def test_what_is_stored_is_read_back_as_it_was() -> None:
    state = subject(member(**OVERLOADED))
    record = replace(state.record, latched=((ConsumerKey("S", "c"), ("pending", "latency_p95")),))
    value = serialize.state_value(state, Writing(record, 1, "w.1"), WrittenBook(state), NOW)
    assert record_of(value) == (record, "w.1")
    plain = msgspec.json.decode(value)
    assert not {"policy", "recovery", "age_ms"} & plain.keys()
    assert (plain["action"], plain["freshness"], plain["status"]) == ("reject", "known", "active")


def test_a_lost_subject_is_stored_as_unknown_with_its_last_status() -> None:
    state = subject(member(**OVERLOADED))
    record = replace(state.record, unknown=True, reasons=())
    value = serialize.state_value(state, Writing(record, 1, "w.1"), WrittenBook(state), NOW)
    plain = msgspec.json.decode(value)
    assert (plain["status"], plain["record"]["status"], plain["freshness"], plain["pressure"]) == (
        "unknown",
        Status.ACTIVE,
        "unknown",
        None,
    )
    assert record_of(value) == (record, "w.1")


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 5))
def test_no_number_on_the_wire_is_infinite_or_none_at_all(value: float, digits: int) -> None:
    rounded = serialize.round_finite(value, digits)
    assert msgspec.json.decode(msgspec.json.encode(rounded)) == rounded
