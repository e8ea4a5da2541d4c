"""A record that a newer version stored is left alone while such a version runs, and replaced once none does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.subject.inputs import (
    Effect,
    Input,
    LoadRecord,
    NewerHeartbeat,
    PolicyChanged,
    RecordCreated,
    RecordLoaded,
    Tick,
    WriteRecord,
)
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import REMOVE_AFTER, SubjectState
from nats_backpressure.core.subject.step import step
from nats_backpressure.core.subject.stored_state import newer_record, record_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, Status
from tests.fakes.view import member
from tests.simulations.stored_samples import RECORD, value

NEWER = Record("s", "e", 7, status=Status.ACTIVE, announced=Status.ACTIVE)


class Replica:
    """An older replica, whose subject a newer one stores; `effects` are those of the last input."""

    def __init__(self) -> None:
        self.at = 1000.0
        one = member()
        self.state = SubjectState("s", Policy(), 2000.0, members={one.key: one})
        self.effects: list[Effect] = []
        self.feed(RecordLoaded(NEWER, 40, newer=True))

    def feed(self, input_: Input, after: float = 0.0) -> None:
        self.at += after
        self.state, self.effects = step(self.state, input_, Now(self.at, self.at), StepContext(10.0, 30.0, writer="w"))

    def pass_time(self, seconds: float) -> list[Effect]:
        """Tick and load for so long; the effects of all that."""
        all_effects: list[Effect] = []
        for _ in range(round(seconds)):
            self.feed(Tick(), after=1.0)
            all_effects += self.effects
            for effect in tuple(self.effects):
                if isinstance(effect, LoadRecord) and not effect.replacing:
                    self.feed(RecordLoaded(NEWER, 40, newer=True))
                    all_effects += self.effects
        return all_effects


def test_it_is_read_again_and_nothing_is_written_while_heartbeats_come() -> None:
    replica = Replica()
    for _ in range(10):
        effects = replica.pass_time(10)
        replica.feed(NewerHeartbeat())
        assert effects and all(effect == LoadRecord("s") for effect in effects)
    replica.feed(PolicyChanged(Policy(retry_after_seconds=7)))
    assert replica.effects == [] and replica.state.record == NEWER


def test_a_write_is_a_sign_like_a_heartbeat() -> None:
    replica = Replica()
    replica.pass_time(25)
    replica.feed(RecordLoaded(NEWER, 41, newer=True))
    replica.pass_time(3)
    replica.feed(RecordLoaded(NEWER, 41, newer=True), after=5)
    assert all(effect == LoadRecord("s") for effect in replica.pass_time(10))


def test_once_no_sign_comes_it_starts_from_the_events_stream() -> None:
    replica = Replica()
    assert replica.pass_time(31)[-1] == LoadRecord("s", replacing=40)
    replica.feed(RecordCreated("f", 40, 7, Status.ACTIVE, "e-1"))
    [write] = replica.effects
    assert isinstance(write, WriteRecord)
    assert (write.writing.expected, write.writing.record.epoch, replica.state.newer_seen_at) == (40, "f", None)


def test_without_consumers_only_the_memory_of_it_goes() -> None:
    replica = Replica()
    replica.state = SubjectState("s", Policy(), 2000.0)
    replica.feed(RecordLoaded(NEWER, 40, newer=True))
    assert replica.pass_time(100) == []
    replica.feed(Tick(), after=REMOVE_AFTER)
    assert [type(effect).__name__ for effect in replica.effects] == ["DropSubject"]


def newer(**change: Any) -> bytes:
    return json.dumps(json.loads(value(RECORD, "n")) | {"schema": 2, "record": "of another form"} | change).encode()


def test_it_is_answered_from_as_far_as_it_can_be_read() -> None:
    record = newer_record(newer(retry_after_seconds=9, action="reject", diagnosis="of_tomorrow"), RECORD.subject)
    assert record is not None and record_of(newer()) is None
    assert (record.status, record.seq, record.unknown) == (Status.ACTIVE, 1, False)
    assert record.admission == GatewayAdmission(Action.REJECT, None, 1.0, 9)
    melting = newer_record(newer(status="melting", action="explode"), RECORD.subject)
    assert melting is not None and (melting.unknown, melting.admission.action) == (True, Action.CONTINUE)


@pytest.mark.parametrize(
    "change", [{"subject": "other"}, {"epoch": "a b"}, {"admit_ratio": 7}, {"reasons": ["r" * 300]}]
)
def test_where_it_cannot_be_read_the_subject_is_unknown(change: dict[str, Any]) -> None:
    assert newer_record(newer(**change), RECORD.subject) == Record(RECORD.subject, "", unknown=True)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"schema": "2"}', b'{"schema": 1}', value(RECORD, "n")])
def test_any_other_value_is_not_newer(raw: bytes) -> None:
    assert newer_record(raw, RECORD.subject) is None
