"""Counts messages that left a stream before a consumer got them; purged messages do not count.

A sample and a look at the stream are taken at different times, so they are compared only in the safe direction: what
had left the stream at a look before a sample can only have been delivered by the time of that sample.

A consumer of a whole stream, without holes or messages of other subjects, loses what lies between its place and the
stream's first sequence: exact, from sequences. For any other consumer there are only the counters; `loss_checkpoints`
has the rule.

It counts as lost only where the stream may have dropped messages by itself, and its first sequence passed the place of
the consumer. Losses that none of these shows cannot be seen in counters.
"""

from __future__ import annotations

from nats_backpressure.core.model.reading import Account
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.signals.loss_checkpoints import LossCheckpoints
from nats_backpressure.core.signals.loss_inputs import fits, is_same_kind, is_same_look, is_same_sample, kind_of
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

MIN_CLEAN_LOOKS = 3
"""Looks in a row without holes and messages that are not the consumer's, after which sequences count messages: none
lies between the last two samples."""


class LossAccount:
    """The losses of one consumer, sample by sample: `total` rises, and never above what was certainly lost. Add samples
    of one incarnation of stream and consumer only."""

    __slots__ = (
        "_account",
        "_checkpoints",
        "_clean",
        "_dropped",
        "_from",
        "_kind",
        "_last",
        "_look",
        "_looked",
        "_moved",
        "_owned",
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
        self._checkpoints = LossCheckpoints()
        self._last: Sample | None = None
        self._look: StreamLook | None = None
        self._looked = 0.0
        """Monotonic time by which the newest look was taken."""
        self._from = (0, 0, 0)
        """Place, deliveries and pending that the next sample is compared with."""
        self._clean = MIN_CLEAN_LOOKS
        """See MIN_CLEAN_LOOKS."""
        self._owned, self._since = False, 0
        """Whether all that lies behind its place is its own, and the last sequence that may be of a subject which the
        stream had earlier. Such messages only become fewer, until the subjects of the stream change."""
        self._kind, self._whole = 0, False
        """See `kind_of`; and whether it gets the whole stream: of the newest sample and look."""
        self._settled = 0
        self._removed_now = 0
        """Messages deleted by an operator since the look before the newest, unless the next interval is one in which
        the stream may have dropped them."""
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
            moved, self._moved = self._moved, not is_same_look(before, look)
            if not (moved or self._moved) and is_same_sample(last, sample):
                return
        self._count(sample, look, at)

    def _count(self, sample: Sample, look: StreamLook, at: float) -> None:
        """Count what was lost by a sample; `look` was taken by `at`, monotonic time."""
        last, before = self._last, self._look
        self._checkpoints.number += 1
        kind, stored, whole = self._kind, self._account, self._whole
        if last is None or before is None or not is_same_kind(last, sample, before, look):
            kind, whole = kind_of(sample, look), gets_whole_stream(sample, look)
            self._owned, self._since = False, look.last_seq
        resumed = stored if last is None and stored is not None and fits(stored, sample, look, kind) else None
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
        self._finish(sample, before, look)
        self._last, self._look = sample, look

    @property
    def at_rest(self) -> bool:
        """Whether another sample like the last one, with a look like its look, changes nothing."""
        return not (self._moved or self.losing or self.purged or self.reset) and self._waiting is None

    def is_same_look(self, look: StreamLook) -> bool:
        """Whether a look shows nothing new."""
        return self._look is not None and is_same_look(self._look, look)

    def _start(self, look: StreamLook) -> None:
        """Start without anything to compare with."""
        self._checkpoints.clear()
        self._settled = max(look.first_seq - 1, self._settled)
        self._dropped = False

    def _resume(self, stored: Account) -> None:
        self._settled = stored.settled
        self._clean = 0 if stored.holes else self._clean
        self._from = (stored.place, stored.given, stored.pending)
        self._checkpoints.resume(stored)

    def _compare(
        self, sample: Sample, before: StreamLook | None, look: StreamLook, elapsed: float | None, whole: bool
    ) -> None:
        drops = self._may_have_dropped(before, look, elapsed)
        place, given, pending = self._from
        moved, deliveries = sample.delivered_stream - place, sample.delivered_consumer - given
        self._checkpoints.given += min(moved, deliveries)
        fell = pending - sample.pending - min(moved, deliveries)
        passed = drops and (look.first_seq - 1 > place or has_life_times(look))
        self.reset = was_reset(fell, moved, deliveries, place, look)
        if not self.reset and was_purged(fell, moved, deliveries, drops, sample, look):
            self.purged = True
            self._checkpoints.clear()
            self._checkpoints.pass_by(self._checkpoints.number - 1)
            self._settled = max(self._settled, sample.delivered_stream)
            return
        counted = self.total
        if whole and self._clean >= MIN_CLEAN_LOOKS and not has_life_times(look) and look.origin is None:
            self._count_sequences(sample, before, look, drops)
            self.losing = self.total > counted or (passed and fell > 0)
            return
        if passed:
            self._checkpoints.pass_by(self._checkpoints.number - 1)
        self.total = self._checkpoints.count(sample, before, look, whole and look.origin is None, counted)
        self._settled = max(self._settled, look.first_seq - 1)
        self.losing = self.total > counted

    def _may_have_dropped(self, before: StreamLook | None, look: StreamLook, elapsed: float | None) -> bool:
        """Whether the stream may have dropped messages by itself since the last sample."""
        # Between two samples lie parts of the last two intervals between looks.
        dropped, self._dropped = self._dropped, may_drop(before, look, elapsed)
        if not self._dropped:
            self._checkpoints.removed += self._removed_now
        self._removed_now = 0 if self._dropped or before is None else removed_by_operator(before, look)
        return dropped or self._dropped

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

    def _finish(self, sample: Sample, before: StreamLook | None, look: StreamLook) -> None:
        """Keep what the next sample is compared with, and what is stored."""
        place, given, pending = self._from = sample.delivered_stream, sample.delivered_consumer, sample.pending
        self._checkpoints.add(sample, before, look, self._whole, self.total)
        if self._dropped and (look.first_seq - 1 > place or has_life_times(look)):
            self._checkpoints.pass_by(self._checkpoints.number)
        if look.retention is None or look.retention.drops:
            self.account = Account(
                self._kind, place, given, pending, look.last_seq, self._settled, self._clean < MIN_CLEAN_LOOKS
            )
        else:
            self.account = None  # no loss is possible, so there is nothing to store
