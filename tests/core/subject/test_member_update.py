"""What a reading changes in one member."""

from __future__ import annotations

from typing import Any

import pytest

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Account, Reading
from nats_backpressure.core.subject.member_update import LOSS_INTERVAL, evaluated, loss_report_due, with_reading
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")
POLICY = Policy(recovery_hold_seconds=0)
ACCOUNT = Account(1, 2, 3, 4, 5, 6)


def reading(at: float = 100.0, pending: int = 0, inflight: int = 0, **more: Any) -> Reading:
    return Reading(KEY, Now(at, at), pending, inflight, **{"latency": 0.0, "drain": None, **more})


def read(*readings: Reading, member: Member | None = None) -> Member:
    member = member or Member(KEY, POLICY)
    for one in readings:
        member = with_reading(member, one, one.at.mono)
    return member


def test_a_calm_reading_is_inactive_and_a_proof() -> None:
    measured = read(reading())
    assert (measured.status, measured.proof, measured.pressure, measured.latches.names) == (
        Status.INACTIVE,
        100.0,
        0.0,
        (),
    )


def test_two_signals_above_their_marks_are_active() -> None:
    measured = read(reading(pending=1500, inflight=600))
    assert (measured.status, measured.pressure) == (Status.ACTIVE, 1.5)


def test_a_member_without_reading_and_latches_stays_unknown() -> None:
    assert evaluated(Member(KEY, POLICY)).status is Status.UNKNOWN


@pytest.mark.parametrize("pending", [0, 900, 1000, 1001, 1500])
def test_an_ignored_consumer_has_no_pressure(pending: int) -> None:
    paused = read(reading(pending=pending, paused=True), member=Member(KEY, Policy(on_paused="ignore")))
    assert (paused.status, paused.pressure) == (Status.INACTIVE, 0.0)


@pytest.mark.parametrize(
    ("more", "causes"),
    [
        pytest.param({}, set(), id="work"),
        pytest.param({"lost": 5}, {"data_loss"}, id="lost messages"),
        pytest.param({"losing": True}, {"data_loss"}, id="a loss that is not counted yet"),
        pytest.param({"purged": True}, {"purged"}, id="a purge"),
        pytest.param({"made": 2}, {"consumer_deleted"}, id="another consumer of that name, or in another stream"),
        pytest.param({"made": 2, "durable": False}, set(), id="one told with the start of the server"),
        pytest.param({"made": 2, "durable": False, "delivered_consumer": 0}, {"consumer_deleted"}, id="another one"),
        pytest.param({"made": 2, "pending": 1500}, set(), id="one that has all of it before it"),
        pytest.param({"delivered_consumer": 0}, {"consumer_reset"}, id="a reset, which begins its count again"),
        pytest.param({"reset": True}, {"consumer_reset"}, id="a reset of one that had delivered nothing"),
    ],
)
def test_what_lowered_pending_is_remembered(more: dict[str, Any], causes: set[str]) -> None:
    before = {"made": 1, "delivered_consumer": 500}
    assert read(reading(pending=1500, **before), reading(101.0, **(before | more))).causes == causes


def test_causes_are_of_one_overload_only() -> None:
    again = read(reading(pending=1500), reading(101.0, purged=True), reading(102.0, pending=1500))
    assert again.causes == frozenset()


@pytest.mark.parametrize("more", [{"lost": 5}, {"purged": True}], ids=str)
def test_what_was_lost_before_an_overload_is_no_cause_in_it(more: dict[str, Any]) -> None:
    """Also of one without the latch of pending."""
    calm, slow = reading(**more), {"latency": 9000.0, "latency_evidence": True}
    assert read(calm).causes == frozenset()
    busy = read(reading(pending=600), reading(100.5, pending=600, **more), reading(101.0, **slow))
    assert busy.latches.names == ("latency_p95",) and busy.causes == frozenset()
    assert read(reading(**slow), reading(101.0, **slow, **more)).causes != frozenset()


def test_a_loss_that_another_replica_reported_counts_once_its_time_is_over() -> None:
    reported = Member(KEY, POLICY, lost_reported=10, lost_reported_at=100.0)
    assert read(reading(101.0, lost=3), member=reported).lost == 3
    assert read(reading(100.0 + LOSS_INTERVAL, lost=3), member=reported).lost == 10


def test_the_account_moves_only_while_nothing_is_left_to_report() -> None:
    assert read(reading(account=ACCOUNT)).account == ACCOUNT
    assert read(reading(account=ACCOUNT, lost=1)).account is None


@pytest.mark.parametrize(("ago", "due"), [(None, True), (LOSS_INTERVAL, True), (LOSS_INTERVAL - 1, False)])
def test_one_loss_is_reported_at_intervals(ago: float | None, due: bool) -> None:
    assert loss_report_due(Member(KEY, POLICY, lost_reported_at=None if ago is None else 100.0 - ago), 100.0) is due


@pytest.mark.parametrize(
    ("second", "stalled"),
    [
        pytest.param(reading(101.0, inflight=1, latency=6000.0, stalled=True), True, id="the stall goes on"),
        pytest.param(reading(101.0, inflight=1, latency=None), True, id="nothing is measured"),
        pytest.param(
            reading(101.0, inflight=1, latency=6000.0, latency_evidence=True), False, id="a measured latency holds it"
        ),
        pytest.param(reading(101.0, latency=0.0, latency_evidence=True), False, id="it is over"),
    ],
)
def test_a_stall_is_shown_until_it_ends_or_a_measurement_takes_over(second: Reading, stalled: bool) -> None:
    first = reading(inflight=1, latency=6000.0, stalled=True)
    assert read(first).stalled
    assert read(first, second).stalled is stalled
