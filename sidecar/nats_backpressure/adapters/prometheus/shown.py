"""Shown: what the gauges show of one subject, but for what time alone changes; and the series they make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nats_backpressure.adapters.prometheus.definitions import ACTIVE, OTHER, P, own_label
from nats_backpressure.adapters.prometheus.exposition import Labels, escape
from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.marks import Marks
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Signal, Status

Series = tuple[str, Labels, float | None]
"""Name, labels, and value, None where that is not known."""


class Judged(NamedTuple):
    """What a gateway would get now."""

    status: Status
    admit_ratio: float
    pressure: float | None
    diagnosis: Diagnosis | None
    alerts: tuple[SubjectAlert, ...]


class Measured(NamedTuple):
    """The newest reading of the worst member."""

    drain: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    inflight: int | None
    arrival_rate: float | None
    ack_rate: float | None
    marks: Marks | None


class Consumed(NamedTuple):
    """The newest reading of one consumer."""

    key: ConsumerKey
    named: bool
    """Whether it has series of its own."""
    pending: int
    inflight: int | None


class Shown(NamedTuple):
    """Two that are equal make the same lines. A tuple, since comparing it is most of what a scrape does."""

    label: str
    freshness: tuple[str, str]
    """How sure the status is, and the reason."""
    judged: Judged | None
    """None for a subject without consumers: it has no status that could be lost."""
    measured: Measured | None
    consumers: tuple[Consumed, ...]

    def series(self) -> Iterator[Series]:
        yield P + "freshness", (self.label, *self.freshness), 1.0
        if self.judged is not None:
            yield from _judged(self.label, self.judged)
        if self.measured is not None:
            yield from _measured(self.label, self.measured)
        yield from _consumed(self.label, self.consumers)


def _judged(label: str, judged: Judged) -> Iterator[Series]:
    yield P + "status", (label,), float(judged.status)
    yield ACTIVE, (label,), float(judged.status is Status.ACTIVE)
    yield P + "admit_ratio", (label,), judged.admit_ratio
    yield P + "pressure", (label,), judged.pressure
    if judged.diagnosis is not None:
        yield P + "diagnosis", (label, judged.diagnosis.value), 1.0
    for alert in judged.alerts if label != OTHER else ():
        yield P + "alerts", (label, escape(alert.name), alert.state), 1.0


def _measured(label: str, measured: Measured) -> Iterator[Series]:
    """A value that is not known has no series."""
    yield P + "drain_seconds", (label,), measured.drain
    for percentile, value in (("p50", measured.p50), ("p95", measured.p95), ("p99", measured.p99)):
        yield P + "latency_seconds", (label, percentile), None if value is None else value / 1000
    yield "router_intake_processing_latency_p95", (label,), measured.p95
    yield "router_intake_inflight_messages", (label,), measured.inflight
    yield P + "arrival_rate", (label,), measured.arrival_rate
    yield P + "ack_rate", (label,), measured.ack_rate
    if (marks := measured.marks) is not None and label != OTHER:
        each = (marks.pending, marks.inflight, marks.latency, marks.drain)
        for signal, mark in zip(Signal, each, strict=True):
            yield P + "overload_mark", (label, signal.value), None if mark is None else mark.overload


def _consumed(label: str, consumers: tuple[Consumed, ...]) -> Iterator[Series]:
    pending = dict[str, int]()
    for each in consumers:
        stream, consumer = (own_label(each.key.stream), own_label(each.key.consumer)) if each.named else (OTHER, OTHER)
        yield P + "pending_messages", (label, stream, consumer), each.pending
        yield P + "inflight_messages", (label, stream, consumer), each.inflight
        # Without the stream: consumers of one name in several streams are one series.
        pending[consumer] = pending.get(consumer, 0) + each.pending
    for consumer, total in pending.items():
        yield "router_jetstream_pending_messages", (label, consumer), total
