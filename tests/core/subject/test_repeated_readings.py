"""Which subjects are at rest, and which readings are not taken as repetitions; the rest is in tests/runtime."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.repeated_readings import is_at_rest, with_repeated_readings
from nats_backpressure.core.subject.state import SubjectState, with_member
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")
READING = Reading(KEY, Now(100.0, 100.0), 0, 0, 0.0, None)
LATER = replace(READING, at=Now(101.0, 101.0))
MEMBER = Member(KEY, Policy(), status=Status.INACTIVE, reading=READING, proof=100.0)
STATE = with_member(SubjectState("s", Policy(), 0.0, record=Record("s", "e"), revision=1, read_at=100.0), MEMBER)


def test_a_subject_with_nothing_to_do_is_at_rest_and_only_its_proof_moves() -> None:
    assert is_at_rest(STATE)
    after = with_repeated_readings(STATE, [(READING, LATER)], Now(101.5, 101.5), 101.0, 10.0)
    assert after is not None and after.worst == after.members[KEY] == replace(MEMBER, reading=LATER, proof=101.0)
    assert (after.newest_proof, after.read_at) == (101.0, 101.5)
    assert (
        replace(after, **{name: getattr(STATE, name) for name in ("members", "worst", "newest_proof", "read_at")})
        == STATE
    )


@pytest.mark.parametrize("field", ["removing", "must_reload", "unproved_at_load", "unstored"])
def test_a_subject_with_something_to_do_is_not(field: str) -> None:
    assert not is_at_rest(replace(STATE, **{field: True}))


def test_one_that_takes_over_losses_reported_by_another_replica_is_not() -> None:
    assert not is_at_rest(with_member(STATE, replace(MEMBER, lost_reported=3)))


@pytest.mark.parametrize(
    ("before", "reading", "now"),
    [
        pytest.param(READING, replace(LATER, key=ConsumerKey("S", "d")), 101.0, id="no member"),
        pytest.param(replace(READING), LATER, 101.0, id="another reading than the last one"),
        pytest.param(READING, LATER, 110.0, id="after a gap"),
    ],
)
def test_other_readings_are_evaluated(before: Reading, reading: Reading, now: float) -> None:
    assert with_repeated_readings(STATE, [(before, reading)], Now(now, now), 0.0, 10.0) is None
