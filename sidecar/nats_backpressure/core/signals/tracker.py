"""Tracks one consumer: takes its samples and ack metrics, and returns its reading."""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.model.member import NOTHING_CARRIED, Carried
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.model.worker_reports import NO_REPORTS, WorkerReports
from nats_backpressure.core.signals import sample_checks
from nats_backpressure.core.signals.ack_latency import AckLatency
from nats_backpressure.core.signals.data_loss import LossAccount
from nats_backpressure.core.signals.delayed_naks import DelayedNaks
from nats_backpressure.core.signals.diagnosis import FULL
from nats_backpressure.core.signals.evidence import Point, ReplyFacts
from nats_backpressure.core.signals.incarnations import is_of_another, mark, marks_match
from nats_backpressure.core.signals.lasting_diagnosis import DiagnosisTracker
from nats_backpressure.core.signals.message_age import MessageAges
from nats_backpressure.core.signals.rate_window import ENOUGH_TIME, RATE_SPAN, Capacity, IntervalCounts, RateWindow
from nats_backpressure.core.signals.rest import Rest
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis

CLOCK_SLACK = 0.1
"""Seconds by which the travel times of two replies may differ."""
STORM = 6
"""Redeliveries within RATE_SPAN per message in flight, above which the messages in flight are not returned."""


class ConsumerTracker:
    """Everything that is remembered of one consumer. Bounded in memory.

    `held`: the last sequence of its stream at a moment when it surely did not exist yet; 0 if none is known. `ages`:
    the message ages of its stream, shared by all consumers there. `carried`: what was stored of it before a restart.
    """

    __slots__ = (
        "_acked",
        "_again",
        "_ages",
        "_arrived",
        "_capacity",
        "_carried",
        "_delayed_naks",
        "_diagnosis",
        "_dropped",
        "_flow",
        "_given_up",
        "_held",
        "_history",
        "_in_hand",
        "_latency",
        "_look",
        "_losses",
        "_made",
        "_naks",
        "_reports",
        "_told_later",
        "_unconfirmed",
        "last",
        "reading",
        "rest",
    )

    def __init__(self, held: int = 0, ages: MessageAges | None = None, carried: Carried = NOTHING_CARRIED) -> None:
        self.last: Sample | None = None
        self.reading: Reading | None = None
        """The reading of the newest sample that was used."""
        self.rest: Rest | None = None
        """While the consumer has nothing to do and all windows are empty: a sample like the last one is not computed,
        only its time is remembered."""
        self._look: StreamLook | None = None
        self._unconfirmed: tuple[Sample, StreamLook] | None = None
        self._held, self._reports = held, NO_REPORTS
        self._carried, self._made = carried, 0
        self._ages = ages or MessageAges()
        self._reset()
        self._diagnosis = DiagnosisTracker(carried.diagnosis, carried.diagnosed_for)
        self._capacity = Capacity(carried.capacity)
        self._delayed_naks = DelayedNaks(carried.handed_back, carried.delivered)

    def _reset(self) -> None:
        """Start again for another incarnation: its counters have nothing to do with the old ones."""
        self._flow = RateWindow()
        self._latency = AckLatency()
        self._delayed_naks = DelayedNaks()
        self._capacity = Capacity()
        self._diagnosis = DiagnosisTracker()
        self._arrived = self._acked = 0.0
        self._given_up: float | None = None
        self._history = 0
        """The stream sequence up to which it reads messages older than itself; 0 if there are none, or none left."""
        self._naks = self._dropped = self._again = self._in_hand = 0
        """In hand: messages in flight that workers have, as far as known."""
        self._told_later = ""
        """Another creation time that the server told of this incarnation, last; see `incarnations.SAME_CREATION`."""
        self._losses = LossAccount(self._carried.account)

    def expect(self, seconds: float) -> None:
        """Its samples are planned so many seconds apart now, while it has work."""
        self._latency.outages.planned = seconds

    def ack_seen(self, seconds: float, deliveries: int, now: Now, times: int = 1) -> None:
        """So many ack metrics: `seconds` from delivery to ack, after `deliveries` deliveries."""
        self._end_rest()
        last = self.last
        sampled_at = last.at.mono if last is not None and (last.pending or last.inflight) else math.inf
        self._latency.add_metrics(now.mono, seconds, times, sampled_at)
        if deliveries > 1:
            self._again += times
            self._flow.add(now.mono, IntervalCounts(redeliveries=(deliveries - 1) * times))

    def nak_seen(self, now: Now, times: int = 1) -> None:
        """Advisories reported so many NAKs."""
        self._end_rest()
        self._naks += times
        self._delayed_naks.add_naks(times)
        self._flow.add(now.mono, IntervalCounts(redeliveries=times))

    def take_stored(self, carried: Carried) -> None:
        """What another replica has stored of it while this one ran."""
        if carried.delivered is not None and marks_match(carried.made, self._made) and self.last is not None:
            self._delayed_naks.take_stored(carried.handed_back, carried.delivered, self.last)

    def dropped_seen(self, now: Now, times: int = 1) -> None:
        """The server gave up messages (max_deliver), or a worker did (TERM): they leave in flight without an ack."""
        self._end_rest()
        self._dropped += times
        self._given_up = now.mono
        self._flow.add(now.mono, IntervalCounts(redeliveries=times))

    def add_sample(
        self, sample: Sample, look: StreamLook, *, early: bool = False, reports: WorkerReports = NO_REPORTS
    ) -> Reading | str:
        """The reading after this sample, or why it is not used yet. `look` was taken after the sample, or (`early`)
        before it, where a consumer was read by itself."""
        self._reports = reports
        sample = self._with_known_parts(sample)
        if self.rest is not None:
            counted = self._losses.total
            if not early and self._is_repeated(sample, look) and not self.rest.full:
                if self._shows_no_loss(sample, look):
                    return self._repeat(self.rest, sample, look)
                self._end_rest()
                self.reading = self._compute(sample, look, counted)
                return self.reading
            self._end_rest()
        if not early and (why := sample_checks.impossible_reason(sample, look)):
            return why
        if why := self._contradiction(sample, look):
            if not self._confirms(sample, look):
                self._unconfirmed = (sample, look)
                return why
            self._start_again(*(self._unconfirmed or (sample, look)))
        self._unconfirmed = None
        repeated = not early and self._is_repeated(sample, look)
        reading = self.reading = self._accept(sample, look, early)
        if repeated and self._is_steady(reading, look):
            self.rest = Rest(sample.at.mono, self._diagnosis.evidence.points[-1].at)
        return reading

    def _with_known_parts(self, sample: Sample) -> Sample:
        """The sample with the name, creation time and configuration of the newest one before it, where these say the
        same: several samples are remembered, and what they have in common is a sixth of all memory."""
        last = self.last
        if last is None:
            return sample
        if sample.created not in (last.created, self._told_later):
            if not sample_checks.is_one_consumer(last, sample):
                return sample
            self._told_later = sample.created
        elif last.config is sample.config and last.created == sample.created:
            return sample
        config = last.config if last.config == sample.config else sample.config
        return replace(sample, key=last.key, created=last.created, config=config)

    def _is_repeated(self, sample: Sample, look: StreamLook) -> bool:
        """Whether a sample of a consumer with nothing to do says the same as the last one, soon after it."""
        last, before = self.last, self._look
        if sample.pending or sample.inflight or last is None or before is None:
            return False
        if not 0 <= sample.at.mono - last.at.mono <= RATE_SPAN:
            return False
        # Ages move by themselves; nothing depends on them while there is nothing to do.
        same = replace(last, at=sample.at, since_delivery=sample.since_delivery, since_ack=sample.since_ack) == sample
        return same and (look is before or _is_like(before, look))

    def _shows_no_loss(self, sample: Sample, look: StreamLook) -> bool:
        """Count the losses up to a repeated sample; whether there is none. Where the stream did not move either there
        is nothing to count."""
        losses, counted, before = self._losses, self._losses.total, self._look
        if losses.at_rest and (look is before or losses.is_same_look(look)):
            return True
        losses.add_sample(sample, look)
        self._ages.add_look(look, sample.at.mono)
        return losses.total == counted and not (losses.losing or losses.purged or losses.reset)

    def _is_steady(self, reading: Reading, look: StreamLook) -> bool:
        """Whether further samples like the last one give this reading again, however many come: no window holds
        anything that could age out of it."""
        if reading.diagnosis is None or reading.latency_source is not None or not reading.settled:
            return False
        if reading.lost or reading.losing or reading.purged or reading.reset:
            return False
        if not (self._flow.is_still(reading.at.mono) and self._latency.is_empty):
            return False
        last = self.last
        return last is not None and self._diagnosis.is_steady(self._point(last), self._facts(last, look))

    def _repeat(self, rest: Rest, sample: Sample, look: StreamLook) -> Reading:
        """The reading of a sample that says the same as the last one."""
        assert self.reading is not None
        if rest.add(sample.at.mono, look):
            self._flow.clear()
        self.last, self._look = sample, look
        lasted, account = sample.at.mono - self._diagnosis.since, self._losses.account
        self.reading = replace(self.reading, at=sample.at, diagnosed_for=lasted, account=account, stream_fill=look.fill)
        return self.reading

    def _end_rest(self) -> None:
        """Make up for the samples that were not computed: everything is then as if they had been."""
        rest, self.rest, last = self.rest, None, self.last
        if rest is None or last is None:
            return
        for until, seconds in rest.intervals:
            self._flow.add(until, IntervalCounts(time=seconds))
        if rest.look is not None:
            self._diagnosis.repeat_newest(rest.points[1:], self._facts(last, rest.look))
        self._latency.idle_at = rest.newest
        self._latency.end_sample(last, last)

    def _start_again(self, sample: Sample, look: StreamLook) -> None:
        """Start again with the first sample of another incarnation, which was created after the last one was read."""
        before, was = self.last, self._look
        again = before is not None and was is not None and before.created != sample.created
        self._held = was.last_seq if again and was is not None and was.created == look.created else 0
        self._reset()
        self._start(sample, look)
        self._losses.add_sample(sample, look)
        self.last, self._look = sample, look

    def _start(self, sample: Sample, look: StreamLook) -> None:
        self._made = mark(sample.created, look.created)
        self._history = self._held if sample.pending and self._held <= look.last_seq else 0

    def _resume(self, sample: Sample, look: StreamLook) -> None:
        """Continue with what was stored before a restart, at the first sample."""
        before = self._carried
        if is_of_another(before.made, self._made):  # of another incarnation; its account says that itself
            self._diagnosis, self._capacity, self._delayed_naks = DiagnosisTracker(), Capacity(), DelayedNaks()
            return
        if before.history <= look.last_seq:
            self._history = max(self._history, before.history)
        if before.diagnosis is Diagnosis.POISON:
            self._given_up = sample.at.mono

    def _contradiction(self, sample: Sample, look: StreamLook) -> str | None:
        if self.last is None or self._look is None:
            return None
        return sample_checks.contradiction(self.last, sample, self._look, look)

    def _confirms(self, sample: Sample, look: StreamLook) -> bool:
        """Whether this sample can follow the unconfirmed one: then both are right."""
        if self._unconfirmed is None:
            return False
        return sample_checks.contradiction(self._unconfirmed[0], sample, self._unconfirmed[1], look) is None

    def _accept(self, sample: Sample, look: StreamLook, early: bool) -> Reading:
        counted = self._losses.total
        self._losses.add_sample(sample, look, early)
        return self._compute(sample, look, counted)

    def _compute(self, sample: Sample, look: StreamLook, counted: int) -> Reading:
        """The reading of a sample whose losses are counted; `counted`: how many there were before."""
        last = self.last
        if last is None:
            self._start(sample, look)
            self._resume(sample, look)
        restarted = self._delayed_naks.add_sample(last, sample)
        returned = self._delayed_naks.count_in_flight(sample)
        if (returned or restarted) and self._storm(sample):
            returned, restarted = 0, False
        not_held = max(returned, min(self._reports.returned, sample.inflight))
        had, self._in_hand = self._in_hand, sample.inflight - not_held
        # With a queue a stall always counts: workers that return all they get do no work.
        working = sample.inflight - returned if sample.pending else self._in_hand
        self._latency.begin_sample(last, sample, working, restarted)
        seen = last is not None and not self._skip_outage(last, sample)
        if last is not None and not self._losses.purged:
            self._count(last, sample, had, seen)
        if sample.delivered_stream >= self._history or not sample.pending:
            self._history = 0
        self._latency.end_sample(last, sample)
        self._naks = self._dropped = self._again = 0
        self.last, self._look = sample, look
        self._ages.add_look(look, sample.at.mono)
        diagnosis = self._diagnose(sample, look)
        return self._reading(sample, look, diagnosis, self._losses.total - counted)

    def _skip_outage(self, last: Sample, sample: Sample) -> bool:
        """Whether nobody looked between two samples; a consumer with nothing to do is read rarely."""
        since, until = last.at.mono, sample.at.mono
        if not (last.pending or last.inflight):
            return False
        moved = sample.delivered_consumer != last.delivered_consumer or sample.inflight < last.inflight
        if not self._latency.outages.add_interval(since, until, moved):
            return False
        self._diagnosis.skip(until - since)
        return True

    def _count(self, last: Sample, sample: Sample, had: int, seen: bool) -> None:
        """Count the interval between two samples: first deliveries less the rise of in flight are acks (at most);
        `had`: how many messages workers had at its start; `seen`: whether rates may be taken from it."""
        time = sample.at.mono - last.at.mono
        given = sample.delivered_consumer - last.delivered_consumer
        new = given if sample.config.filters else min(given, sample.delivered_stream - last.delivered_stream)
        naks = self._naks if sample.config.filters else 0
        acks = max(0, new - (sample.inflight - last.inflight) - naks - self._dropped)
        if not _may_have_acked(sample, time):
            acks = 0
        waited = last.pending > 0 and sample.pending > 0
        away = waited and not (last.inflight or _waiting(last))
        counts = IntervalCounts(
            time=time,
            acks=acks,
            arrivals=max(0, sample.pending - last.pending + new),
            deliveries=given,
            redeliveries=max(0, sample.redelivered - last.redelivered, given - new),
            held=(had + self._in_hand) / 2 * time,
            waited_time=time if waited else 0.0,
            waited_acks=acks if waited else 0.0,
            lead_time=time if away else 0.0,
            lead_acks=acks if away else 0.0,
        )
        if seen:
            self._flow.add(sample.at.mono, counts)
        before_work = away and not self._acked and self._capacity.rate is None
        self._arrived += counts.arrivals
        self._acked += acks
        again = counts.redeliveries or self._naks or self._dropped or self._again
        if seen and waited and not (before_work or again or last.paused or sample.paused) and time <= RATE_SPAN:
            self._capacity.learn(time, acks)
        if sample.since_ack is None and (acks > 0 or sample.floor_stream > last.floor_stream):
            self._latency.add_acks(sample.at.mono)

    def _diagnose(self, sample: Sample, look: StreamLook) -> Diagnosis | None:
        """The lasting diagnosis, if this sample agrees."""
        return self._diagnosis.add_sample(self._point(sample), self._facts(sample, look))

    def _point(self, sample: Sample) -> Point:
        counts = (sample.delivered_consumer, self._arrived, self._acked)
        return Point(sample.at.mono, sample.pending, sample.inflight, _waiting(sample), *counts)

    def _facts(self, sample: Sample, look: StreamLook) -> ReplyFacts:
        # Not at its limit yet, one that drops old messages does neither.
        fill = None if look.retention is not None and look.retention.discards_old else look.fill
        refused = self._reports.refused and sample.pending > 0
        return ReplyFacts(sample.config, sample.paused, self._history > 0, look.at_limit, fill, self._given_up, refused)

    def _reading(self, sample: Sample, look: StreamLook, diagnosis: Diagnosis | None, lost: int) -> Reading:
        now = sample.at.mono
        flow = self._flow.total(now)
        acked = sample.config.ack_policy != "none"
        latency = self._latency.latency(sample, self._flow, flow, self._delayed_naks.all_may_be(sample))
        known = flow.time >= ENOUGH_TIME
        return Reading(
            key=sample.key,
            at=sample.at,
            pending=sample.pending,
            inflight=sample.inflight if acked else None,
            latency=_ms(latency.compared),
            stalled=latency.stalled,
            drain=flow.drain(sample.pending),
            latency_source=latency.source,
            latency_evidence=latency.evidence,
            settled=self._latency.is_settled(now),
            p50=_ms(latency.p50),
            p95=_ms(latency.p95),
            p99=_ms(latency.p99),
            stall=latency.stall * 1000,
            stall_known=self._latency.stall_known,
            spare=self._delayed_naks.all_may_be(sample),
            arrival_rate=flow.arrivals / flow.time if known else None,
            ack_rate=flow.acks / flow.time if known else None,
            redelivery_ratio=min(1.0, flow.redeliveries / flow.deliveries) if flow.deliveries else None,
            cap=sample.config.max_ack_pending,
            ack_wait=sample.config.ack_wait,
            backoff=sample.config.backoff,
            acks_all=sample.config.ack_policy == "all",
            delivered_consumer=sample.delivered_consumer,
            waiting=sample.waiting,
            lost=lost,
            losing=self._losses.losing,
            purged=self._losses.purged,
            reset=self._losses.reset,
            made=self._made,
            durable=sample.config.durable,
            handed_back=self._delayed_naks.count_in_flight(sample),
            account=self._losses.account,
            paused=sample.paused,
            diagnosis=diagnosis,
            lasting_diagnosis=self._diagnosis.lasting,
            diagnosed_for=now - self._diagnosis.since if self._diagnosis.lasting else 0.0,
            history=self._history,
            backfilling=self._history > 0,
            capacity=self._capacity.rate,
            stream_fill=look.fill,
            oldest_age=self._ages.oldest_waiting(sample, look),
        )

    def _storm(self, sample: Sample) -> bool:
        """Whether messages are redelivered all the time: then they are not returned with a delay."""
        return self._flow.total(sample.at.mono).redeliveries > STORM * sample.inflight


def _waiting(sample: Sample) -> int:
    """Pulls that wait on the server, or the client that a push consumer delivers to."""
    return int(sample.bound) if sample.config.push else sample.waiting


def _may_have_acked(sample: Sample, time: float) -> bool:
    """Whether the server's own clock allows an ack in the last `time` seconds; before 2.10 it reports no times, and
    never one of a consumer that does not acknowledge."""
    if sample.since_delivery is None or sample.config.ack_policy == "none":
        return True
    return sample.since_ack is not None and sample.since_ack <= time + CLOCK_SLACK


def _is_like(before: StreamLook, look: StreamLook) -> bool:
    """Whether a stream that is seen later differs in nothing that a consumer with nothing to do depends on, beside
    losses: it may hold other messages now."""
    full = before.fill is not None and before.fill >= FULL
    if look.last_seq < before.last_seq or full != (look.fill is not None and look.fill >= FULL):
        return False
    moved = replace(
        before,
        first_seq=look.first_seq,
        last_seq=look.last_seq,
        messages=look.messages,
        fill=look.fill,
        oldest_age=look.oldest_age,
    )
    return moved == look


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
