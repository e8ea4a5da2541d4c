"""Counts lost messages from counters: samples are compared with the checkpoints of earlier ones.

Everything that was pending at a checkpoint is, at a later sample, delivered (in the deliveries since), still pending,
or gone; so

    lost >= pending then - deliveries since - min(pending now, room),  room = min(last then - first + 1, messages)

where `room` is of the last look before the sample: what was there at the checkpoint and still is lies between the
stream's first sequence and its last one at the checkpoint. A consumer of the whole stream also got each later message:

    lost >= pending then + arrivals since - deliveries since - pending now
"""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model.reading import Account
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.signals.stream_drops import has_life_times

CHECKPOINTS = 32
"""Checkpoints of one consumer; when there are more, every second one of the older half goes, never the first."""
UNBOUNDED = 2**63
"""More messages than any stream holds."""


class Checkpoint(Struct, frozen=True, gc=False):
    """The part of one sample that later samples are compared with."""

    number: int
    place: int
    given: int
    """First deliveries since the start of counting, at most."""
    pending: int
    last: int
    before: int | None
    """Last sequence at the look before the sample; None where there was none."""
    held: int
    """Messages in the stream at that look."""
    lost: int
    """Messages counted as lost by then."""
    removed: int
    """Messages deleted by an operator before the look before the sample, of whatever subject."""


class LossCheckpoints:
    """The checkpoints of one consumer. Bounded by CHECKPOINTS."""

    __slots__ = ("_passed", "given", "number", "points", "removed")

    def __init__(self) -> None:
        self.points: list[Checkpoint] = []
        self.number = 0
        """Of the newest sample."""
        self._passed = -1
        """Number of the newest checkpoint that the first sequence passed while the stream may have dropped messages."""
        self.given = 0
        """First deliveries so far, at most: each moves the place, redeliveries do not."""
        self.removed = 0
        """Messages deleted by an operator up to the look before the newest."""

    def clear(self) -> None:
        """Forget them: nothing may be compared with them any more."""
        self.points.clear()

    def resume(self, stored: Account) -> None:
        """Begin with what is stored of the newest sample of another process."""
        checkpoint = Checkpoint(self.number, stored.place, 0, stored.pending, stored.last, None, 0, 0, self.removed)
        self.points.append(checkpoint)
        self.number += 1

    def pass_by(self, number: int) -> None:
        """The first sequence passed the place of the consumer at the checkpoints up to this number."""
        self._passed = max(self._passed, number)

    def count(self, sample: Sample, before: StreamLook | None, look: StreamLook, whole: bool, total: int) -> int:
        """The messages lost by a sample in all, of which `total` were counted before; `whole`: whether all that arrived
        is the consumer's."""
        useful = []
        for then in self.points:
            left, arrived = sample.pending, 0
            if before is not None:
                left = min(left, max(0, min(then.last - before.first_seq + 1, before.messages)))
                arrived = max(0, before.last_seq - then.last) if whole else 0
            given = self.given - then.given
            gone = max(then.pending - given - left, then.pending + arrived - given - sample.pending)
            gone -= min(gone, _replaced(look, then) + self.removed - then.removed)
            if then.number <= self._passed:
                lost = gone if has_life_times(look) else min(gone, look.first_seq - 1 - then.place)
                total = max(total, then.lost + lost)
            elif gone > 0:
                continue  # deleted by an operator: this checkpoint can no longer count what is lost from now on
            useful.append(then)
        self.points = useful
        return total

    def add(self, sample: Sample, before: StreamLook | None, look: StreamLook, whole: bool, total: int) -> None:
        """Add the newest sample, by which `total` messages were lost."""
        if not whole:
            self._drop_useless(before)
        ahead, held = (None, 0) if before is None else (before.last_seq, before.messages)
        place, pending, counted = sample.delivered_stream, sample.pending, (total, self.removed)
        then = Checkpoint(self.number, place, self.given, pending, look.last_seq, ahead, held, *counted)
        self.points.append(then)
        if len(self.points) > CHECKPOINTS:
            del self.points[1 : CHECKPOINTS // 2 : 2]

    def _drop_useless(self, before: StreamLook | None) -> None:
        """Drop checkpoints that cannot show further loss: everything was delivered or counted."""
        gone = before.first_seq if before is not None else 0
        self.points = [then for then in self.points if then.last >= gone and self.given - then.given < then.pending]


def _replaced(look: StreamLook, then: Checkpoint) -> int:
    """How many messages, at most, newer ones replaced since a checkpoint: those are not lost."""
    retention = look.retention
    if retention is None or not retention.replaces:
        return 0
    if then.before is None:
        return UNBOUNDED
    arrived = look.last_seq - then.before
    if retention.rollup and arrived > 0:
        return UNBOUNDED
    # No subject holds more messages than the stream.
    return arrived if then.held + arrived > retention.per_subject else 0
