"""Estimates the rates of one consumer for the adaptive loop, over shorter windows than those shown to people.

A loop that looks back ten seconds would oscillate.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.values import ConsumerKey

RATE_SPAN = 5.0
"""Seconds of work after which a measurement of the drain rate weighs 1/e."""
ENOUGH_ACKS, ENOUGH_BUSY = 10, 1.0
"""Acks, or seconds with messages waiting, before a first drain rate is used."""
STILL = 3.0
"""Faded seconds (4.6 on the clock) of waiting messages and no ack ever, after which the drain rate is 0."""
ARRIVAL_SPAN, LONGEST_SPAN = 2.0, 20.0
"""Seconds after which arrivals weigh 1/e: longer, up to the longest, where fewer than ENOUGH_ARRIVALS come in that time
and chance would dominate."""
ENOUGH_ARRIVALS = 40.0
LIKELY = 2.0
"""Standard deviations of chance (Poisson) that a sudden rise must exceed to be used at once."""
LONGEST_GAP = 10.0
"""Seconds; a longer interval between two readings is no evidence for the present."""


class LoadEstimate(Struct, frozen=True):
    """The last counts of a consumer, sums that fade, and the rates and the goal from them."""

    key: ConsumerKey
    at: float
    pending: int
    inflight: int
    delivered: int
    lasted: float = 0.0
    """Seconds of the interval that ended now; 0 where counting started again."""
    acks: float = 0.0
    busy: float = 0.0
    """Seconds in which messages waited, and `acks` what was acknowledged in them; only such time makes them fade."""
    arrivals: float = 0.0
    time: float = 0.0
    applied: float = 0.0
    """The share in force, integrated over `time`."""
    sudden: float = 0.0
    """Messages per second that the last interval alone shows to be offered, less chance."""
    rate: float | None = None
    """Messages processed per second; None without evidence."""
    demand: float = 0.0
    """Messages per second if no request were refused."""
    goal: float = 1.0
    """The admit ratio that this consumer needs."""
    full: bool = False
    """Whether its backlog is long enough to refuse requests."""

    @property
    def drain(self) -> float | None:
        """Seconds until the waiting messages are processed."""
        if self.rate is None:
            return None
        return self.pending / self.rate if self.rate > 0 else math.inf

    @property
    def arrival_rate(self) -> float:
        """Messages per second."""
        return self.arrivals / self.time

    @property
    def share(self) -> float:
        """The mean share in force while these messages arrived."""
        return self.applied / self.time


def next_estimate(was: LoadEstimate | None, reading: Reading, applied: float) -> LoadEstimate:
    """The estimate after a newer reading; `applied`: the share that gateways applied since the last one."""
    counts = (reading.key, reading.at.mono, reading.pending, reading.inflight or 0, reading.delivered_consumer)
    if was is None or reading.delivered_consumer < was.delivered:  # another incarnation
        return LoadEstimate(*counts)
    estimate = replace(was, **dict(zip(LoadEstimate.__struct_fields__, counts, strict=False)), lasted=0.0)
    if (lasted := estimate.at - was.at) > LONGEST_GAP:
        return estimate
    new = (estimate.delivered - was.delivered) * (1 - (reading.redelivery_ratio or 0.0))
    if was.pending > 0 and estimate.pending > 0 and not reading.paused:
        estimate = _add_acks(estimate, max(0.0, new - estimate.inflight + was.inflight), lasted)
    estimate = _add_arrivals(estimate, max(0.0, estimate.pending - was.pending + new), lasted, applied)
    return replace(estimate, rate=_rate(estimate, reading.capacity))


def _add_acks(estimate: LoadEstimate, acks: float, lasted: float) -> LoadEstimate:
    fading = math.exp(-lasted / RATE_SPAN)
    return replace(estimate, acks=estimate.acks * fading + acks, busy=estimate.busy * fading + lasted)


def _add_arrivals(estimate: LoadEstimate, came: float, lasted: float, applied: float) -> LoadEstimate:
    seldom = ENOUGH_ARRIVALS * estimate.time / estimate.arrivals if estimate.arrivals > 0 else LONGEST_SPAN
    fading = math.exp(-lasted / min(max(ARRIVAL_SPAN, seldom), LONGEST_SPAN))
    return replace(
        estimate,
        lasted=lasted,
        arrivals=estimate.arrivals * fading + came,
        time=estimate.time * fading + lasted,
        applied=estimate.applied * fading + applied * lasted,
        sudden=max(0.0, came - LIKELY * math.sqrt(came)) / (applied * lasted),
    )


def _rate(estimate: LoadEstimate, capacity: float | None) -> float | None:
    """The drain rate; a learnt `capacity` fills up what was measured lately."""
    if capacity is not None:
        return (estimate.acks + capacity * max(0.0, RATE_SPAN - estimate.busy)) / max(RATE_SPAN, estimate.busy)
    if estimate.acks <= 0:
        return 0.0 if estimate.busy >= STILL else None
    return estimate.acks / estimate.busy if estimate.acks >= ENOUGH_ACKS or estimate.busy >= ENOUGH_BUSY else None
