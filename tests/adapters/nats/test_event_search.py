"""An event that was stored before is found again however long ago that was, whatever else stands on its subject."""

from __future__ import annotations

from itertools import count
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.values import EventType, Status

NAMES, SUBJECT = Names("backpressure"), "orders"
MOST_REQUESTS = 60
"""Of one search, in the largest stream of these."""


class EventStream:
    """A stream with events of one type, `seq` by `seq`; None is a message of another program."""

    def __init__(self, seqs: list[int | None]) -> None:
        self.messages = [self._message(place, seq) for place, seq in zip(count(1), seqs, strict=False)]
        self.asked = 0

    def _message(self, place: int, seq: int | None) -> Message:
        event = {"id": event_id(SUBJECT, "e", seq or 0), "seq": seq, "epoch": "e", "timestamp": ""}
        body = msgspec.json.encode(event) if seq is not None else b"not ours"
        return Message(NAMES.event("recovery", SUBJECT), place, body, {}, 0.0)

    async def next(self, stream: str, subject: str, place: int) -> Message | None:
        self.asked += 1
        return self.messages[place - 1] if place <= len(self.messages) else None


async def found(stream: EventStream, seq: int) -> int | None:
    publisher = JetStreamEventPublisher(cast(JetStreamApi, stream), NAMES, lambda event: cast(Any, None))
    event = SubjectEvent(
        event_id(SUBJECT, "e", seq), EventType.RECOVERY, SUBJECT, 0.0, "e", seq, None,
        Status.ACTIVE, Status.INACTIVE, (), None, None, None, 0, 1.0,
    )  # fmt: skip
    stored = await publisher._search(stream.messages[-1].subject, event, len(stream.messages))
    return None if stored is None else stored.seq


@given(st.lists(st.one_of(st.integers(1, 4), st.none()), min_size=1, max_size=60), st.data())
async def test_it_is_the_first_one_that_is_not_earlier(rises: list[int | None], data: st.DataObject) -> None:
    seqs: list[int | None] = []
    top = 0
    for rise in rises:
        top += rise or 0
        seqs.append(None if rise is None else top)
    seq = data.draw(st.integers(1, top + 2))
    later = [each for each in seqs if each is not None and each >= seq]
    assert await found(EventStream(seqs), seq) == (later[0] if later else None)


@pytest.mark.parametrize("seq", [1, 501, 5_000, 9_999, 19_999])
async def test_one_of_long_ago_costs_a_few_requests(seq: int) -> None:
    stream = EventStream(list(range(1, 20_001)))
    assert await found(stream, seq) == seq
    assert stream.asked <= MOST_REQUESTS
