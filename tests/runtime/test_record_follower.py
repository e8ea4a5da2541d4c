"""What the events stream shows is taken for published, unless it is another change with the same number."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import EventSeen, EventSent, Input
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.queries import serialize
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.record_follower import RecordFollower
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.simulations.stored_samples import SUBJECT, event


class Registry:
    """One subject that has two events to publish, and tries the first one."""

    def __init__(self, publishing: str | None) -> None:
        record = Record(SUBJECT, "e", 2, unsent=(event(1), event(2)))
        self.subjects = {SUBJECT: SubjectState(SUBJECT, Policy(), 0.0, record=record, publishing=publishing)}
        self.fed: list[Input] = []

    def feed(self, subject: str, input_: Input) -> None:
        self.fed.append(input_)


@pytest.mark.parametrize(
    ("published", "publishing", "taken"),
    [
        (event(1), event(1).id, True),
        (event(2), event(1).id, False),
        (event(1), None, False),
        (replace(event(1), at=event(1).at + 1.0), event(1).id, False),
        (replace(event(1), subject="another", id="another:e:1"), event(1).id, False),
    ],
    ids=["ours", "a later one", "none is tried", "another change", "another subject"],
)
def test_what_another_replica_published_is_published(
    published: SubjectEvent, publishing: str | None, taken: bool
) -> None:
    registry, stored = Registry(publishing), parse_event(msgspec.json.encode(serialize.event_message(published, "i")))
    assert stored is not None
    RecordFollower(cast("SubjectRegistry", registry)).take_event(stored)
    assert registry.fed == ([EventSent(event(1).id)] if taken else [])


@pytest.mark.parametrize(
    ("seen", "fed"),
    [
        (event(2), []),
        (event(3), [EventSeen("e", 3)]),
        (event(1, epoch="other"), [EventSeen("other", 1)]),
    ],
    ids=["counted", "a later one", "another epoch"],
)
def test_an_event_that_the_record_does_not_count_is_news(seen: SubjectEvent, fed: list[Input]) -> None:
    registry, stored = Registry(None), parse_event(msgspec.json.encode(serialize.event_message(seen, "i")))
    assert stored is not None
    RecordFollower(cast("SubjectRegistry", registry)).take_event(stored)
    assert registry.fed == fed
