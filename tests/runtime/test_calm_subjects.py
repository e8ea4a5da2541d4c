"""Calm subjects: a tick passes one by only while time alone cannot change it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.restart_facts import ACCOUNT_EVERY, CARRY_EVERY, carried_write_due
from nats_backpressure.core.subject.state import SubjectState, with_member
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Status
from nats_backpressure.runtime.calm_subjects import CalmSubjects

NOW = Now(100.0, 1_767_225_600.0)
KEY = ConsumerKey("S", "c")
MEMBER = Member(KEY, Policy(), status=Status.INACTIVE, reading=Reading(KEY, NOW, 0, 0, 0.0, None), proof=NOW.mono)
STORED = SubjectState("s", Policy(), 0.0, record=Record("s", "e"), revision=1, written_at=NOW.mono)
CALM = with_member(STORED, MEMBER)


def test_a_subject_is_calm_until_its_proof_is_too_old() -> None:
    subjects = CalmSubjects(stale_after=3.0)
    assert not subjects.is_calm(CALM, NOW.mono), "nothing was found out yet"
    assert subjects.check(CALM, NOW.mono - 2.0, NOW)
    assert subjects.is_calm(CALM, NOW.mono + 0.9) and not subjects.is_calm(CALM, NOW.mono + 1.1)


def test_a_subject_is_calm_until_its_stored_facts_may_be_worth_a_write() -> None:
    subjects = CalmSubjects(stale_after=1e9)
    assert subjects.check(CALM, NOW.mono, NOW)
    due = NOW.mono + ACCOUNT_EVERY
    assert subjects.is_calm(CALM, due - 0.1) and not subjects.is_calm(CALM, due)


@pytest.mark.parametrize("written_at", [each / 10 for each in range(10_000, 10_400)])
def test_another_diagnosis_is_written_whatever_the_last_digit_of_the_time_is(written_at: float) -> None:
    reading = replace(MEMBER.reading, lasting_diagnosis=Diagnosis.IDLE)
    state = with_member(replace(STORED, written_at=written_at), replace(MEMBER, reading=reading))
    subjects, at = CalmSubjects(stale_after=1e9), Now(round(written_at + CARRY_EVERY, 1), 0.0)
    is_due = not subjects.check(state, at.mono, at)
    assert is_due is carried_write_due(state, at)
    later = Now(at.mono + 1.0, 0.0)
    assert not subjects.is_calm(state, later.mono) and not subjects.check(state, at.mono, later)


def test_a_subject_without_a_recent_proof_is_not_calm() -> None:
    subjects = CalmSubjects(stale_after=10.0)
    assert not subjects.check(CALM, None, NOW) and not subjects.check(CALM, NOW.mono - 10.0, NOW)


def test_another_state_of_the_subject_is_not_calm_unless_readings_were_only_repeated() -> None:
    subjects, before = CalmSubjects(stale_after=10.0), replace(CALM, read_at=NOW.mono)
    subjects.check(before, NOW.mono, NOW)
    assert not subjects.is_calm(replace(before), NOW.mono)
    reading = replace(MEMBER.reading, at=Now(NOW.mono + 1.0, NOW.wall + 1.0))
    after = subjects.repeat(before, [(MEMBER.reading, reading)], reading.at, NOW.mono)
    assert after is not None and after.members[KEY].reading is reading
    assert subjects.is_calm(after, NOW.mono) and not subjects.is_calm(before, NOW.mono)


def test_readings_of_a_subject_that_is_not_at_rest_are_not_repeated() -> None:
    subjects, moving = CalmSubjects(stale_after=10.0), replace(CALM, read_at=NOW.mono, must_reload=True)
    assert subjects.repeat(moving, [(MEMBER.reading, MEMBER.reading)], NOW, NOW.mono) is None


def test_nothing_is_kept_of_a_subject_that_is_forgotten() -> None:
    subjects = CalmSubjects(stale_after=10.0)
    subjects.check(CALM, NOW.mono, NOW)
    subjects.forget("s")
    subjects.forget("s")
    assert not subjects.is_calm(CALM, NOW.mono)
