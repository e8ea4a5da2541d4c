"""Diagnoses a consumer: eleven rules over the evidence of its last few samples; the most severe one that holds is the
diagnosis."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.core.model.marks import SMALL_CAP, SMALL_CAP_STALL
from nats_backpressure.core.signals.evidence import Evidence
from nats_backpressure.protocol.values import Diagnosis, Status

WORKING = 5.0
"""Seconds (or the ack wait, if shorter) for which a worker with messages may work on them without a sign."""
SHORT_QUEUE = 10
"""Messages; a shorter queue neither grows nor drains."""
MARGIN = 1.1
"""Factor by which arrivals must exceed acks."""
FULL = 0.99
"""Share of its own limits at which a stream is full: it refuses what does not fit, so bytes hardly ever reach 1."""
POISON_SPAN = 60.0
"""Seconds for which a message given up (MAX_DELIVERIES) or terminated (TERM) is diagnosed."""


def server_stuck(seen: Evidence) -> bool:
    """Messages and pulls both wait, below the cap, and the server delivers nothing: look at the server."""
    config = seen.facts.config
    if config.push or config.priority_groups or config.rate_limited or config.original_replay or seen.facts.paused:
        return False  # each of these may hold messages back on purpose
    waits = seen.nearly_all(seen.queued) and seen.nearly_all(seen.pulled)
    return waits and seen.hardly_any(seen.capped) and seen.delivered() == 0


def cap_reached(seen: Evidence) -> bool:
    """Messages wait because in flight is at max_ack_pending: make the worker faster, or raise the cap."""
    if not (seen.nearly_all(seen.capped) and seen.nearly_all(seen.queued)):
        return False
    # A small cap is full whenever the worker works: that is trouble only once no ack comes.
    cap = seen.facts.config.max_ack_pending or 0
    return cap > SMALL_CAP or seen.points[-1].at - seen.acked_at >= SMALL_CAP_STALL / 1000


def nobody_pulling(seen: Evidence) -> bool:
    """Messages wait, nobody asks for them and none is acknowledged: see whether the worker runs."""
    if seen.facts.paused or seen.facts.refused or seen.moved_at > seen.points[0].at:
        return False
    if not (seen.nearly_all(seen.queued) and seen.hardly_any(seen.pulled)):
        return False
    # A worker with messages may work on them, without a sign, before it asks for more.
    allowed = min(WORKING, seen.facts.config.ack_wait) if seen.points[-1].inflight else 0.0
    return seen.points[-1].at - seen.moved_at >= allowed


def poison(seen: Evidence) -> bool:
    """A message was given up after max_deliver, or terminated, in the last minute: find the one no worker can take."""
    return seen.facts.given_up is not None and seen.points[-1].at - seen.facts.given_up <= POISON_SPAN


def stream_full(seen: Evidence) -> bool:
    """The stream is at its own limits: it refuses new messages, or drops old ones while this consumer has a queue."""
    if seen.facts.pushes_out:  # normal for many streams; a consumer without a queue loses nothing
        return seen.nearly_all(seen.queued)
    return seen.facts.fill is not None and seen.facts.fill >= FULL


def falling_behind(seen: Evidence) -> bool:
    """More messages arrive than are acknowledged, and the queue grows: add workers, or slow the intake."""
    if seen.facts.paused or seen.points[-1].pending <= SHORT_QUEUE:
        return False
    return seen.arrived() > MARGIN * seen.acked() and seen.trend() > 0


def paused(seen: Evidence) -> bool:
    """The consumer is paused and delivers nothing until it is resumed."""
    return seen.facts.paused


def backfilling(seen: Evidence) -> bool:
    """The consumer is new and still reads what the stream held before it: its queue is history."""
    return seen.facts.backfilling


def draining(seen: Evidence) -> bool:
    """More is acknowledged than arrives, and the queue shrinks: wait."""
    return seen.points[0].pending > SHORT_QUEUE and seen.acked() > seen.arrived() and seen.trend() < 0


def idle(seen: Evidence) -> bool:
    """Nothing waits, nothing is in flight, nothing arrives."""
    return seen.nearly_all(seen.empty) and seen.arrived() == 0 and seen.delivered() == 0


def healthy(seen: Evidence) -> bool:
    """Messages come and go, and no other rule holds. Where none do since workers are refused, nothing is said."""
    return not seen.facts.refused or seen.moved_at > seen.points[0].at


RULES: tuple[tuple[Diagnosis, Callable[[Evidence], bool]], ...] = (
    (Diagnosis.SERVER_STUCK, server_stuck),
    (Diagnosis.CAP_REACHED, cap_reached),
    (Diagnosis.NOBODY_PULLING, nobody_pulling),
    (Diagnosis.POISON, poison),
    (Diagnosis.STREAM_FULL, stream_full),
    (Diagnosis.FALLING_BEHIND, falling_behind),
    (Diagnosis.PAUSED, paused),
    (Diagnosis.BACKFILLING, backfilling),
    (Diagnosis.DRAINING, draining),
    (Diagnosis.IDLE, idle),
    (Diagnosis.HEALTHY, healthy),
)
"""The most severe first."""


def diagnose(seen: Evidence) -> Diagnosis | None:
    """The most severe rule that holds; None while there is too little evidence."""
    if seen.thin:
        return None
    return next((name for name, holds in RULES if holds(seen)), None)


CALM_DIAGNOSES = (Diagnosis.HEALTHY, Diagnosis.IDLE)


def confirmed(diagnosis: Diagnosis | None, status: Status) -> Diagnosis | None:
    """The diagnosis as shown beside a status: no consumer is idle or healthy above inactive, the rules are only slower
    then."""
    return None if diagnosis in CALM_DIAGNOSES and status > Status.INACTIVE else diagnosis
