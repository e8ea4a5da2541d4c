"""What the events stream contains, and what that means for an event: one row for each case."""

from __future__ import annotations

import pytest

from nats_backpressure.core.subject.publish_check import (
    OwnEvent,
    PublishStep,
    StoredPosition,
    next_base,
    step_after_ack,
    step_after_duplicate,
    step_after_search,
    step_before_publish,
)

MINE = OwnEvent("s:e:5", 5, "t5")
OURS = StoredPosition(9, "s:e:5", 5, "t5")

BEFORE = {
    "nothing was ever published": (StoredPosition(), 0, PublishStep.PUBLISH),
    "an older one of the same type": (StoredPosition(7, "s:e:3", 3, "t3"), 4, PublishStep.PUBLISH),
    "an older one of another epoch": (StoredPosition(7, "s:d:4", 4, "t4"), 4, PublishStep.PUBLISH),
    "ours is the newest": (OURS, 5, PublishStep.STORED),
    "ours is there, and later ones of other types": (OURS, 8, PublishStep.STORED),
    "our id, but another change": (StoredPosition(9, "s:e:5", 5, "t4"), 5, PublishStep.CONFLICT),
    "a later one of the same type may have ours behind it": (
        StoredPosition(12, "s:e:7", 7, "t7"),
        7,
        PublishStep.SEARCH,
    ),
    "a foreign message may have ours behind it": (StoredPosition(12), 5, PublishStep.SEARCH),
    "our seq was published as another type": (StoredPosition(7, "s:e:3", 3, "t3"), 5, PublishStep.CONFLICT),
    "our seq was published as another type, ours never": (StoredPosition(), 5, PublishStep.CONFLICT),
}


@pytest.mark.parametrize(("newest", "top", "then"), BEFORE.values(), ids=BEFORE.keys())
def test_what_the_newest_message_means(newest: StoredPosition, top: int, then: PublishStep) -> None:
    assert step_before_publish(MINE, newest, top) is then


SEARCHED = {
    "ours": (OURS, 7, PublishStep.STORED),
    "our id, but another change": (StoredPosition(9, "s:e:5", 5, "t4"), 7, PublishStep.CONFLICT),
    "somebody else's of our seq": (StoredPosition(9, "s:d:5", 5, "t5"), 7, PublishStep.CONFLICT),
    "a later one, and ours was never published": (StoredPosition(9, "s:e:7", 7, "t7"), 7, PublishStep.CONFLICT),
    "only foreign messages": (None, 4, PublishStep.PUBLISH),
    "only foreign messages, and our seq is taken": (None, 5, PublishStep.CONFLICT),
}


@pytest.mark.parametrize(("position", "top", "then"), SEARCHED.values(), ids=SEARCHED.keys())
def test_what_a_search_means(position: StoredPosition | None, top: int, then: PublishStep) -> None:
    assert step_after_search(MINE, position, top) is then


ACKNOWLEDGED = {
    "stored": (False, False, PublishStep.STORED),
    "stored on a retry": (False, True, PublishStep.STORED),
    "our own copy came through": (True, True, PublishStep.STORED),
    "known to the server before we ever tried: the stream has to say whose": (True, False, PublishStep.SEARCH),
}


@pytest.mark.parametrize(("duplicate", "attempted", "then"), ACKNOWLEDGED.values(), ids=ACKNOWLEDGED.keys())
def test_what_an_acknowledgement_means(duplicate: bool, attempted: bool, then: PublishStep) -> None:
    assert step_after_ack(duplicate, attempted) is then


@pytest.mark.parametrize("verdict", PublishStep)
def test_a_disputed_event_is_published_only_if_the_stream_shows_it(verdict: PublishStep) -> None:
    assert step_after_duplicate(verdict) is (
        PublishStep.STORED if verdict is PublishStep.STORED else PublishStep.CONFLICT
    )


@pytest.mark.parametrize(("top", "seq"), [(9, 9), (5, 5), (4, 4), (0, 4)])
def test_a_new_epoch_never_goes_back(top: int, seq: int) -> None:
    assert next_base(MINE, top) == seq
