"""A replica that reads nothing of a subject knows by the reports of another one until when that was proved."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.subject.inputs import Tick
from nats_backpressure.core.subject.next_record import is_stale_alone, is_unobserved
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState, with_members
from nats_backpressure.core.subject.step import step
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from tests.fakes.view import member

STATE = SubjectState("s", Policy(), unread_since=0.0, record=Record("s", "e", policy_mark="m"), revision=1)
READ = member()
CONTEXT = StepContext(10.0, 30.0, writer="w", policy_mark="m", writer_seen_at=99.0, other_marks=frozenset({"m"}))


@pytest.mark.parametrize(
    ("state", "context", "counts"),
    [
        pytest.param({}, {}, True, id="it is left to the writer"),
        pytest.param({}, {"policy_mark": "other", "writer_seen_at": None}, True, id="it is left to other policies"),
        pytest.param({}, {"writer_seen_at": None}, False, id="this one writes it: the other may read nothing either"),
        pytest.param({}, {"writer_seen_at": -math.inf}, False, id="it is not known yet who writes it"),
        pytest.param({"record": replace(STATE.record, stale=True)}, {}, False, id="it is stored as stale"),
        pytest.param({"record": replace(STATE.record, unknown=True)}, {}, False, id="it is stored as unknown"),
        pytest.param({"members": {READ.key: READ}}, {}, False, id="it was read here"),
        pytest.param({"record": None}, {}, False, id="nothing is stored"),
    ],
)
def test_a_report_counts_only_where_the_subject_is_left_to_another_replica(
    state: dict[str, Any], context: dict[str, Any], counts: bool
) -> None:
    before = replace(STATE, **state)
    after, _ = step(with_members(before, before.members), Tick(99.5), Now(100, 100), replace(CONTEXT, **context))
    assert after.reported_at == (99.5 if counts else -math.inf)


def test_what_is_reported_grows_old_like_what_is_read() -> None:
    reported, _ = step(STATE, Tick(100.0), Now(100, 100), CONTEXT)
    for state, stale_at, unknown_at in ((STATE, 0.0, 30.0), (reported, 110.0, 130.0)):
        assert state is not reported or not is_stale_alone(state, CONTEXT, stale_at - 0.1)
        assert is_stale_alone(state, CONTEXT, stale_at + 0.1)
        assert not is_unobserved(state, Now(unknown_at - 0.1, 0), CONTEXT)
        assert is_unobserved(state, Now(unknown_at, 0), CONTEXT)


def test_an_older_report_takes_nothing_back() -> None:
    newer, _ = step(STATE, Tick(99.5), Now(100, 100), CONTEXT)
    for tick in (Tick(98.0), Tick()):
        assert step(newer, tick, Now(101, 101), CONTEXT)[0].reported_at == 99.5
