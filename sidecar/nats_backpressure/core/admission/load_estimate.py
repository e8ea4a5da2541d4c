"""What the adaptive loop measures of one consumer. Its windows are shorter than those shown to people, since a loop
that looks back ten seconds swings."""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model import Reading
from nats_backpressure.protocol.values import ConsumerKey

RATE_SPAN = 5.0
"""Seconds of work after which what was seen of the drain rate weighs 1/e."""
ENOUGH_ACKS, ENOUGH_BUSY = 10, 1.0
"""Acks, or seconds with messages waiting, before a drain rate that was never known is believed."""
STILL = 3.0
"""Faded seconds (4.6 on the clock) of waiting messages and no ack ever, after which the drain rate is 0."""
ARRIVAL_SPAN, LONGEST_SPAN = 2.0, 20.0
"""Seconds after which what was seen of arrivals weighs 1/e: longer where fewer than ENOUGH_ARRIVALS come in that time,
as chance would rule, up to the longest."""
ENOUGH_ARRIVALS = 40.0
LIKELY = 2.0
"""Standard deviations of chance (Poisson) that a sudden rise must pass to be believed at once."""
LONGEST_GAP = 10.0
"""Seconds; an interval between two readings that is longer says nothing about the present."""


class LoadEstimate(Struct, frozen=True):
    """The last counts of a consumer, sums that fade, and what they came to."""

    key: ConsumerKey
    at: float
    pending: int
    inflight: int
    delivered: int
    lasted: float = 0.0
    """Seconds of the interval that ended now; 0 where counting began anew."""
    acks: float = 0.0
    busy: float = 0.0
    """Seconds in which messages waited, and `acks` what was acknowledged in them; only such time makes them fade."""
    arrivals: float = 0.0
    time: float = 0.0
    applied: float = 0.0
    """The share in force, integrated over `time`."""
    sudden: float = 0.0
    """Messages a second that the last interval alone shows to be offered, chance taken off."""
    rate: float | None = None
    """Messages a second that are got through; None without evidence."""
    demand: float = 0.0
    """Messages a second there would be if nobody were refused."""
    goal: float = 1.0
    """The ratio this consumer asks for."""
    full: bool = False
    """Whether its backlog is so long that anybody may be refused."""

    @property
    def drain(self) -> float | None:
        """Seconds until what waits is through."""
        if self.rate is None:
            return None
        return self.pending / self.rate if self.rate > 0 else math.inf

    @property
    def arrival_rate(self) -> float:
        return self.arrivals / self.time

    @property
    def share(self) -> float:
        """The mean share in force while these messages arrived."""
        return self.applied / self.time


def next_estimate(was: LoadEstimate | None, reading: Reading, applied: float) -> LoadEstimate:
    """The gauge after a newer reading, `applied` being the share that gateways apply since the last one."""
    counts = (reading.key, reading.at.mono, reading.pending, reading.inflight or 0, reading.delivered_consumer)
    if was is None or reading.delivered_consumer < was.delivered:  # another incarnation
        return LoadEstimate(*counts)
    gauge = replace(was, **dict(zip(LoadEstimate.__struct_fields__, counts, strict=False)), lasted=0.0)
    if (lasted := gauge.at - was.at) > LONGEST_GAP:
        return gauge
    new = (gauge.delivered - was.delivered) * (1 - (reading.redelivery_ratio or 0.0))
    if was.pending > 0 and gauge.pending > 0 and not reading.paused:
        gauge = _worked(gauge, max(0.0, new - gauge.inflight + was.inflight), lasted)
    gauge = _arrived(gauge, max(0.0, gauge.pending - was.pending + new), lasted, applied)
    return replace(gauge, rate=_rate(gauge, reading.capacity))


def _worked(gauge: LoadEstimate, acks: float, lasted: float) -> LoadEstimate:
    fading = math.exp(-lasted / RATE_SPAN)
    return replace(gauge, acks=gauge.acks * fading + acks, busy=gauge.busy * fading + lasted)


def _arrived(gauge: LoadEstimate, came: float, lasted: float, applied: float) -> LoadEstimate:
    seldom = ENOUGH_ARRIVALS * gauge.time / gauge.arrivals if gauge.arrivals > 0 else LONGEST_SPAN
    fading = math.exp(-lasted / min(max(ARRIVAL_SPAN, seldom), LONGEST_SPAN))
    return replace(
        gauge,
        lasted=lasted,
        arrivals=gauge.arrivals * fading + came,
        time=gauge.time * fading + lasted,
        applied=gauge.applied * fading + applied * lasted,
        sudden=max(0.0, came - LIKELY * math.sqrt(came)) / (applied * lasted),
    )


def _rate(gauge: LoadEstimate, capacity: float | None) -> float | None:
    """What was learnt long before (`capacity`) fills up what little was seen lately."""
    if capacity is not None:
        return (gauge.acks + capacity * max(0.0, RATE_SPAN - gauge.busy)) / max(RATE_SPAN, gauge.busy)
    if gauge.acks <= 0:
        return 0.0 if gauge.busy >= STILL else None
    return gauge.acks / gauge.busy if gauge.acks >= ENOUGH_ACKS or gauge.busy >= ENOUGH_BUSY else None
