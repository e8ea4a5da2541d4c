"""Counts messages that left a stream before a consumer got them; purged messages do not count.

A sample and a look at the stream are taken at different times, so they are compared only in the safe direction: what
had left the stream at a look before a sample can only have been delivered by the time of that sample.

A consumer of a whole stream, without holes or messages of other subjects, loses what lies between its place and the
stream's first sequence: exact, from sequences. For any other consumer there are only the counters. Everything that was
pending at a checkpoint is, at a later sample, delivered (in the deliveries since), still pending, or gone; so

    lost >= pending then - deliveries since - min(pending now, room),  room = min(last then - first + 1, messages)

where `room` is of the last look before the sample: what was there at the checkpoint and still is lies between the
stream's first sequence and its last one at the checkpoint. A consumer of the whole stream also got each later message:

    lost >= pending then + arrivals since - deliveries since - pending now

It counts as lost only where the stream may have dropped messages by itself, and its first sequence passed the place of
the consumer. Losses that none of these shows cannot be seen in counters.
"""

from __future__ import annotations

from zlib import crc32

from msgspec import Struct

from nats_backpressure.core.model.reading import Account
from nats_backpressure.core.model.samples import Retention, Sample, StreamLook
from nats_backpressure.core.signals.stream_drops import (
    gets_whole_stream,
    has_holes,
    has_life_times,
    may_drop,
    owns_the_rest,
    removed_by_operator,
    was_purged,
    was_reset,
)

CHECKPOINTS = 32
"""Checkpoints of one consumer; when there are more, every second one of the older half goes, never the first."""
MIN_CLEAN_LOOKS = 3
"""Looks in a row without holes and messages that are not the consumer's, after which sequences count messages: none
lies between the last two samples."""
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


class LossAccount:
    """The losses of one consumer, sample by sample: `total` rises, and never above what was certainly lost. Bounded by
    CHECKPOINTS. Add samples of one incarnation of stream and consumer only."""

    __slots__ = (
        "_account",
        "_checkpoints",
        "_clean",
        "_dropped",
        "_from",
        "_given",
        "_kind",
        "_last",
        "_look",
        "_looked",
        "_moved",
        "_number",
        "_owned",
        "_passed",
        "_removed",
        "_removed_now",
        "_settled",
        "_since",
        "_waiting",
        "_whole",
        "account",
        "losing",
        "purged",
        "reset",
        "total",
    )

    def __init__(self, account: Account | None = None) -> None:
        self.total = 0
        self.losing = False
        """Whether the newest sample shows loss: a fall of pending is then no recovery."""
        self.purged = False
        """Whether the stream, or a part of it, was purged since the sample before."""
        self.reset = False
        """Whether the consumer was moved forward past messages of the stream since the sample before."""
        self.account = account
        """The state of counting after the newest sample."""
        self._account = account
        self._waiting: tuple[Sample, StreamLook] | None = None
        self._checkpoints: list[Checkpoint] = []
        self._last: Sample | None = None
        self._look: StreamLook | None = None
        self._looked = 0.0
        """Monotonic time by which the newest look was taken."""
        self._from = (0, 0, 0)
        """Place, deliveries and pending that the next sample is compared with."""
        self._given = 0
        """First deliveries so far, at most: each moves the place, redeliveries do not."""
        self._clean = MIN_CLEAN_LOOKS
        """See MIN_CLEAN_LOOKS."""
        self._owned, self._since = False, 0
        """Whether all that lies behind its place is its own, and the last sequence that may be of a subject which the
        stream had earlier. Such messages only become fewer, until the subjects of the stream change."""
        self._kind, self._whole = 0, False
        """See `_kind`; and whether it gets the whole stream: of the newest sample and look."""
        self._number = 0
        self._passed = -1
        """Number of the newest checkpoint that the first sequence passed while the stream may have dropped messages."""
        self._settled = 0
        self._removed = self._removed_now = 0
        """Messages deleted by an operator up to the look before the newest, and since then: unless the next interval is
        one in which the stream may have dropped them."""
        self._dropped = False
        """Whether the stream may have dropped messages between the last two looks."""
        self._moved = True
        """Whether the newest look differs from the one before it: then the next sample must be compared."""

    def add_sample(self, sample: Sample, look: StreamLook, early: bool = False) -> None:
        """Count the losses up to a sample; `look` was taken after it. Where it was taken before (`early`), the sample
        waits for the first newer look, and is dropped if a sample with its own look comes first."""
        self.losing = self.purged = self.reset = False
        at = sample.at.mono
        waiting, self._waiting = self._waiting, (sample, look) if early else None
        if early:
            if waiting is None or waiting[1] is look:
                return
            sample = waiting[0]
        last, before = self._last, self._look
        if last is not None and before is not None:
            moved, self._moved = self._moved, not _same_look(before, look)
            if not (moved or self._moved) and _same(last, sample):
                return
        self._number += 1
        kind, stored, whole = self._kind, self._account, self._whole
        if last is None or before is None or not _same_kind(last, sample, before, look):
            kind, whole = _kind(sample, look), gets_whole_stream(sample, look)
            self._owned, self._since = False, look.last_seq
        resumed = stored if last is None and stored is not None and _fits(stored, sample, look, kind) else None
        self._owned |= (resumed is not None and not resumed.holes) or owns_the_rest(sample, before, look, self._since)
        self._clean = self._clean + 1 if self._owned and not has_holes(look) else 0
        if resumed is not None:
            self._resume(resumed)
            self._compare(sample, before, look, None, whole)
        elif last is None or kind != self._kind:
            self._start(look)
        else:
            self._compare(sample, before, look, at - self._looked, whole)
        self._looked = at
        self._kind, self._whole = kind, whole
        self._add_checkpoint(sample, before, look, whole)
        self._last, self._look = sample, look

    @property
    def at_rest(self) -> bool:
        """Whether another sample like the last one, with a look like its look, changes nothing."""
        return not (self._moved or self.losing or self.purged or self.reset) and self._waiting is None

    def is_same_look(self, look: StreamLook) -> bool:
        """Whether a look shows nothing new."""
        return self._look is not None and _same_look(self._look, look)

    def _start(self, look: StreamLook) -> None:
        """Start without anything to compare with."""
        self._checkpoints.clear()
        self._settled = max(look.first_seq - 1, self._settled)
        self._dropped = False

    def _resume(self, stored: Account) -> None:
        self._settled = stored.settled
        self._clean = 0 if stored.holes else self._clean
        self._from = (stored.place, stored.given, stored.pending)
        checkpoint = Checkpoint(self._number, stored.place, 0, stored.pending, stored.last, None, 0, 0, self._removed)
        self._checkpoints.append(checkpoint)
        self._number += 1

    def _compare(
        self, sample: Sample, before: StreamLook | None, look: StreamLook, elapsed: float | None, whole: bool
    ) -> None:
        # Between two samples lie parts of the last two intervals between looks.
        dropped, self._dropped = self._dropped, may_drop(before, look, elapsed)
        drops = dropped or self._dropped
        if not self._dropped:
            self._removed += self._removed_now
        self._removed_now = 0 if self._dropped or before is None else removed_by_operator(before, look)
        place, given, pending = self._from
        moved, deliveries = sample.delivered_stream - place, sample.delivered_consumer - given
        self._given += min(moved, deliveries)
        fell = pending - sample.pending - min(moved, deliveries)
        passed = drops and (look.first_seq - 1 > place or has_life_times(look))
        self.reset = was_reset(fell, moved, deliveries, place, look)
        if not self.reset and was_purged(fell, moved, deliveries, drops, sample, look):
            self.purged = True
            self._checkpoints.clear()
            self._settled = max(self._settled, sample.delivered_stream)
            self._passed = self._number - 1
            return
        counted = self.total
        if whole and self._clean >= MIN_CLEAN_LOOKS and not has_life_times(look) and look.origin is None:
            self._count_sequences(sample, before, look, drops)
            self.losing = self.total > counted or (passed and fell > 0)
            return
        if passed:
            self._passed = max(self._passed, self._number - 1)
        self._count_checkpoints(sample, before, look, whole and look.origin is None)
        self._settled = max(self._settled, look.first_seq - 1)
        self.losing = self.total > counted

    def _count_sequences(self, sample: Sample, before: StreamLook | None, look: StreamLook, drops: bool) -> None:
        """Exact for a consumer of the whole stream. What is gone at a look after the sample may have been delivered in
        between, unless the consumer was already past it."""
        place, given, _ = self._from
        start = max(place, self._settled)
        at = max(sample.delivered_stream, start)
        gone = max(before.first_seq - 1 if before is not None else 0, min(look.first_seq - 1, at))
        if gone > start and drops:
            skipped = max(0, at - start - (sample.delivered_consumer - given))
            self.total += min(gone - start, skipped + max(0, gone - at))
        self._settled = max(self._settled, gone)

    def _count_checkpoints(self, sample: Sample, before: StreamLook | None, look: StreamLook, whole: bool) -> None:
        useful = []
        for then in self._checkpoints:
            left, arrived = sample.pending, 0
            if before is not None:
                left = min(left, max(0, min(then.last - before.first_seq + 1, before.messages)))
                arrived = max(0, before.last_seq - then.last) if whole else 0
            given = self._given - then.given
            gone = max(then.pending - given - left, then.pending + arrived - given - sample.pending)
            gone -= min(gone, _replaced(look, then) + self._removed - then.removed)
            if then.number <= self._passed:
                lost = gone if has_life_times(look) else min(gone, look.first_seq - 1 - then.place)
                self.total = max(self.total, then.lost + lost)
            elif gone > 0:
                continue  # deleted by an operator: this checkpoint can no longer count what is lost from now on
            useful.append(then)
        self._checkpoints = useful

    def _add_checkpoint(self, sample: Sample, before: StreamLook | None, look: StreamLook, whole: bool) -> None:
        place, given, pending = sample.delivered_stream, sample.delivered_consumer, sample.pending
        self._from = (place, given, pending)
        self._drop_useless(whole, before)
        ahead, held = (None, 0) if before is None else (before.last_seq, before.messages)
        counted = (self.total, self._removed)
        then = Checkpoint(self._number, place, self._given, pending, look.last_seq, ahead, held, *counted)
        self._checkpoints.append(then)
        if len(self._checkpoints) > CHECKPOINTS:
            del self._checkpoints[1 : CHECKPOINTS // 2 : 2]
        if self._dropped and (look.first_seq - 1 > place or has_life_times(look)):
            self._passed = self._number
        if look.retention is None or look.retention.drops:
            self.account = Account(
                self._kind, place, given, pending, look.last_seq, self._settled, self._clean < MIN_CLEAN_LOOKS
            )
        else:
            self.account = None  # no loss is possible, so there is nothing to store

    def _drop_useless(self, whole: bool, before: StreamLook | None) -> None:
        """Drop checkpoints that cannot show further loss: everything was delivered or counted."""
        if whole:
            return
        gone = before.first_seq if before is not None else 0
        self._checkpoints = [
            then for then in self._checkpoints if then.last >= gone and self._given - then.given < then.pending
        ]


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


def _kind(sample: Sample, look: StreamLook) -> int:
    """A checksum: equal where two samples count the same messages in the same way."""
    retention = look.retention or Retention()
    replaced = f"{retention.policy} {retention.replaces and retention.per_subject} {retention.rollup}"
    what = (sample.created, look.created, replaced, *sorted(sample.config.filters))
    return crc32("\n".join(what).encode(errors="replace"))


def _fits(stored: Account, sample: Sample, look: StreamLook, kind: int) -> bool:
    """Whether a stored account can be of the same stream and consumer, earlier."""
    return (
        stored.kind == kind
        and stored.place <= sample.delivered_stream
        and stored.given <= sample.delivered_consumer
        and stored.last <= look.last_seq
    )


def _same_kind(last: Sample, sample: Sample, before: StreamLook, look: StreamLook) -> bool:
    """Whether nothing changed that `_kind` and `gets_whole_stream` depend on."""
    return (
        sample.created == last.created
        and sample.config == last.config
        and look.created == before.created
        and look.subjects == before.subjects
        and look.retention == before.retention
    )


def _same(last: Sample, sample: Sample) -> bool:
    """Whether nothing of the consumer moved that loss depends on."""
    return (
        sample.pending == last.pending
        and sample.delivered_consumer == last.delivered_consumer
        and sample.delivered_stream == last.delivered_stream
        and sample.config.filters == last.config.filters
    )


def _same_look(before: StreamLook, look: StreamLook) -> bool:
    return (
        look.first_seq == before.first_seq
        and look.last_seq == before.last_seq
        and look.messages == before.messages
        and look.retention == before.retention
    )
