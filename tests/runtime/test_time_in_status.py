"""TimeInStatus: each second counts for the status the subject had in it, as far as it was known."""

from __future__ import annotations

from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Status
from nats_backpressure.runtime.time_in_status import TimeInStatus


def state(status: Status, *, unknown: bool = False, revision: int = 1) -> SubjectState:
    record = Record("s", "e", 1, status, status, since=0.0, unknown=unknown)
    return SubjectState("s", Policy(), unread_since=0.0, record=record, revision=revision)


def test_seconds_count_for_the_status_in_which_they_were_spent() -> None:
    times = TimeInStatus(100.0)
    times.account(state(Status.WARNING), 103.0)
    times.account(state(Status.WARNING), 104.0)
    times.account(state(Status.ACTIVE), 110.0)
    times.account(state(Status.WARNING), 111.0)
    assert times.seconds(113.0) == {"unknown": 3.0, "warning": 9.0, "active": 1.0}
    assert times.seconds(110.5)["warning"] == 7.0, "a reader with an earlier time sees none taken away"


def test_a_status_counts_once_it_is_stored_and_while_it_is_known() -> None:
    times = TimeInStatus(0.0)
    times.account(state(Status.ACTIVE, revision=0), 1.0)
    times.account(state(Status.ACTIVE, unknown=True), 2.0)
    assert times.seconds(3.0) == {"unknown": 3.0}


def test_a_window_has_the_seconds_of_each_status() -> None:
    times = TimeInStatus(0.0)
    times.account(state(Status.ACTIVE), 10.0)
    assert times.window(40.0, 60).seconds[Status.ACTIVE] == 30.0
