"""AckLatency: how long one consumer's messages are in flight, from ack metrics, an estimate, or the stall."""

from __future__ import annotations

import math
from copy import deepcopy

from msgspec import Struct

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.signals.outages import SHORTEST, Outages
from nats_backpressure.core.signals.quantiles import LATENCY_SPAN, NO_QUANTILES, Quantiles
from nats_backpressure.core.signals.rate_window import RATE_SPAN, IntervalCounts, RateWindow
from nats_backpressure.protocol.values import LatencySource

P95_OF_MEAN = 3.0
"""The 95th percentile of an exponential service time is ln(20), three times its mean."""
FRESH_ACKS = 10.0
"""Seconds after which acks no longer show the latency of now."""


class Latency(Struct, frozen=True):
    """The latency after one sample, in seconds; None where there is no evidence."""

    p50: float | None
    p95: float | None
    p99: float | None
    source: LatencySource | None
    """Where `p95` is from."""
    stall: float
    """Time without any ack while messages are in flight."""
    compared: float | None
    """What is compared with the mark: of messages delivered since there was last nothing to do, by acks of the last
    FRESH_ACKS seconds; or the stall."""
    stalled: bool
    """Whether that is the stall."""
    evidence: bool
    """Whether a latch may be released on it."""


class AckLatency:
    """What is remembered of one consumer's acks. All times are monotonic."""

    __slots__ = (
        "_acked_at",
        "_all",
        "_apart_until",
        "_current",
        "_first_at",
        "_inflight_since",
        "_rise_seen",
        "_unbroken_since",
        "_unheld_at",
        "idle_at",
        "outages",
        "working",
    )

    def __init__(self) -> None:
        self.outages = Outages()
        """What is compared with a mark is without them."""
        self._all = self._current = NO_QUANTILES
        """Those of now are of the messages delivered since last nothing was in flight and nothing waited, without
        outages. Others are only shown to people. While both hold the same, they are one."""
        self._apart_until = -math.inf
        """When something was last added that differs in them."""
        self.idle_at = -math.inf
        """When there was last nothing to do."""
        self._unheld_at = -math.inf
        """When no message was last with a worker: none there now can be older."""
        self.working = 0
        """Messages in flight that are not returned."""
        self._first_at: float | None = None
        """When the first sample came: a window that is not full yet releases no latch."""
        self._unbroken_since = math.inf
        """Since when no two samples were more than RATE_SPAN apart: of the time before, ack metrics may be missing."""
        self._acked_at: float | None = None
        self._inflight_since: float | None = None
        self._rise_seen = True
        """Whether in flight was seen to rise from 0, at the time above; otherwise it may have been long before."""

    @property
    def is_empty(self) -> bool:
        """Whether no ack metric could age out of it."""
        return self._all.is_empty and self._current.is_empty

    @property
    def stall_known(self) -> bool:
        """Whether the stall is certainly no longer than measured."""
        acked, since = self._acked_at, self._inflight_since
        return not self.working or self._rise_seen or (acked is not None and since is not None and acked >= since)

    @property
    def _looked_since(self) -> float:
        """The end of the last outage, or when the first sample came."""
        return math.inf if self._first_at is None else max(self._first_at, self.outages.ended_at)

    def is_settled(self, now: float) -> bool:
        """Whether samples have come for long enough to release a latch on what they show."""
        return now - self._looked_since >= FRESH_ACKS

    def add_metrics(self, now: float, seconds: float, times: int, sampled_at: float = math.inf) -> None:
        """So many ack metrics of `seconds` from delivery to ack. `sampled_at`: when a sample last showed messages; an
        outage since then is not over for us."""
        if self._all is NO_QUANTILES:
            self._all = self._current = Quantiles()
        began = now - seconds
        outage = sampled_at == self.outages.ended_at or self.outages.may_be_outage(sampled_at, now)
        until = max(began, min(sampled_at, now)) if outage else now
        missed = now - until + self.outages.unseen(began, until)
        is_of_now = began >= self.idle_at
        if missed or not is_of_now:
            self._apart_until = now
            if self._current is self._all:
                self._current = deepcopy(self._all)
        self._all.add(now, seconds, times)
        if self._current is not self._all:
            if is_of_now:
                self._current.add(now, seconds - missed, times)
            if self._all.is_newer(self._apart_until):
                self._current = self._all

    def begin_sample(self, last: Sample | None, sample: Sample, working: int, restarted: bool) -> None:
        """A sample came. `restarted`: what is in flight was all delivered again."""
        now = sample.at.mono
        if self._first_at is None or (last is not None and now - last.at.mono > RATE_SPAN):
            self._unbroken_since = now
        self._first_at = now if self._first_at is None else self._first_at
        self.working = working
        if restarted:
            self._inflight_since = None

    def add_acks(self, now: float) -> None:
        """Messages were acknowledged between the last two samples of a server that does not report when."""
        self._acked_at = now

    def end_sample(self, last: Sample | None, sample: Sample) -> None:
        """Update the times that the stall counts from: the last ack, and when work in flight rose from 0."""
        now = sample.at.mono
        if sample.since_ack is not None:  # a reply that came late may be younger than it seems: no ack moves back
            acked_at = now - sample.since_ack
            self._acked_at = acked_at if self._acked_at is None else max(acked_at, self._acked_at)
        if self.working == 0:
            self._inflight_since, self._rise_seen, self._unheld_at = None, True, now
        elif last is None or self._inflight_since is None:
            # Whatever is in flight was delivered at the newest delivery or before: the stall is at least this long. A
            # delivery is seen soon, unless nobody could look.
            longest = math.inf if last is None else SHORTEST
            self._inflight_since = now - min(sample.since_delivery or 0.0, longest)
            self._rise_seen = last is not None

    def latency(self, sample: Sample, window: RateWindow, flow: IntervalCounts, all_returned: bool) -> Latency:
        """The latency after this sample; `flow` is the sum of the `window`. `all_returned`: perhaps all that is in
        flight was returned with a delay."""
        now = sample.at.mono
        stall = self._stall(now)
        quantiles = self._all.at(now, 0.5, 0.95, 0.99)
        estimate = None if quantiles or self._awaits_metrics(sample) else flow.estimate()
        p95 = quantiles[1] if quantiles else None if estimate is None else self._p95(estimate, now)
        source: LatencySource | None = "sampled" if quantiles else "estimated" if estimate is not None else None
        if self.working and (p95 is None or stall > p95):
            p95, source = stall, "stall"
        sampled = quantiles if source == "sampled" else None  # beside a stall a low p99 would look calm
        return Latency(
            sampled[0] if sampled else None,
            p95,
            sampled[2] if sampled else None,
            source,
            stall,
            *self._compared(sample, window, flow, stall, all_returned),
        )

    def _compared(
        self, sample: Sample, window: RateWindow, flow: IntervalCounts, stall: float, all_returned: bool
    ) -> tuple[float | None, bool, bool]:
        now = sample.at.mono
        if sample.pending == 0 and self.working == 0:
            self.idle_at = now
            if not self._current.is_empty:
                self._current, self._apart_until = Quantiles(), self._all.newest or now
            return 0.0, False, True
        p95 = self._measured(sample, window, flow)
        evidence = p95 is not None and self.is_settled(now)
        if self.working and not all_returned and (p95 is None or stall > p95):
            return stall, True, evidence
        return p95, False, evidence

    def _measured(self, sample: Sample, window: RateWindow, flow: IntervalCounts) -> float | None:
        now = sample.at.mono
        quantiles = self._current.at(now, 0.95)
        newest = self._current.newest if quantiles else self._acked_at
        if newest is None or now - newest > FRESH_ACKS:
            return None
        if quantiles:
            return quantiles[0]
        if self._awaits_metrics(sample):
            return None
        if now - self.idle_at < RATE_SPAN:
            flow = window.total(now, self.idle_at)
        estimate = flow.rough_estimate()
        return None if estimate is None else self._p95(estimate, now)

    def _p95(self, estimate: float, now: float) -> float:
        """When work begins, many messages in flight and few acks pass for a long time in flight. But nothing is in
        flight for longer than since there was last nothing to do, nothing in flight, or nobody who looked."""
        return min(P95_OF_MEAN * estimate, now - max(self.idle_at, self._unheld_at, self._looked_since))

    def _awaits_metrics(self, sample: Sample) -> bool:
        """Whether ack metrics may come that show more than an estimate. After a restart, three times the mean of a
        steady latency would be an overload that is none; where none came in LATENCY_SPAN, none are expected."""
        return sample.config.sampled and sample.at.mono - self._unbroken_since < LATENCY_SPAN

    def _stall(self, now: float) -> float:
        if not self.working or self._inflight_since is None:
            return 0.0
        since = self._inflight_since if self._acked_at is None else max(self._acked_at, self._inflight_since)
        return max(0.0, self.outages.seen(since, now))
