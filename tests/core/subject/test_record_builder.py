"""Events outside of a state, and renumbered ones; all else of the builder is in test_step."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.record_builder import NO_EPOCH, event_id, rejection_event, renumbered
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.protocol.values import EventType, Status

REJECTION = Rejection("bucket:7", (("pending.warn", "must be a number, not text"),))


def test_a_rejection_under_a_key_that_nobody_watches_is_an_event_of_its_own_epoch() -> None:
    event = rejection_event("a b", REJECTION, 100.0, 3)
    assert (event.id, event.epoch, event.seq) == (event_id("a b", NO_EPOCH, 3), NO_EPOCH, 3)
    assert (event.type, event.was, event.now) == (EventType.POLICY_REJECTED, Status.INACTIVE, Status.INACTIVE)
    assert (event.errors, event.policy_revision) == (REJECTION.errors, "bucket:7")


def test_unsent_events_are_numbered_again_in_another_epoch() -> None:
    events = tuple(rejection_event("s", REJECTION, 100.0, seq, "old") for seq in (4, 5))
    after = renumbered(replace(Record("s", "old", seq=5), unsent=events), "new", 10)
    assert (after.epoch, after.seq) == ("new", 12)
    assert [(event.id, event.seq, event.epoch) for event in after.unsent] == [
        (event_id("s", "new", 11), 11, "new"),
        (event_id("s", "new", 12), 12, "new"),
    ]
