"""Gauges, read from the book at scrape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nats_backpressure import __version__
from nats_backpressure.adapters.prometheus.definitions import (
    ACTIVE,
    CONSUMERS_PER_SUBJECT,
    GAUGES,
    OTHER,
    TIME_IN_STATUS,
    Labels,
    P,
)
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.queries.lookup import SubjectAnswer, SubjectLookup
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.view import ServiceView


class Labelling(Protocol):
    """Which subjects have labels of their own."""

    max_subjects: int

    def label(self, subject: str) -> str: ...
    def dry_run(self, label: str) -> None: ...


class StateCollector(Collector):
    """Reads the book at scrape, from another thread: every mapping is copied first, every value in it is frozen."""

    def __init__(self, book: ServiceView, metrics: Labelling, clock: Clock) -> None:
        self._book, self._metrics, self._clock = book, metrics, clock
        self._finder = SubjectLookup(book)
        self._places = set[tuple[str, ConsumerKey]]()

    def collect(self) -> Iterator[Metric]:
        now = self._clock.now()
        states = dict(self._book.subjects)
        page = _Page()
        # Those that are gone make room; nothing is counted under them.
        self._places &= {(name, key) for name, state in states.items() for key in state.members}
        for name, state in states.items():
            label = self._metrics.label(name)
            found = self._finder.answer(state, now)
            if found.policy.mode == "observe":
                self._metrics.dry_run(label)
            self._judged(page, label, found)
            self._measured(page, label, found, now)
            self._consumers(page, name, label, state)
            for word, seconds in self._book.time_in(name, now).items():
                page.add(TIME_IN_STATUS[0], (label, word), seconds)
        for look in list(self._book.looks.values())[: self._metrics.max_subjects]:
            page.most(P + "stream_fill", (look.name,), look.fill)
        page.add(P + "build_info", (__version__,), 1.0)
        yield from page.families()

    def _judged(self, page: _Page, label: str, found: SubjectAnswer) -> None:
        """As a gateway would be told now; of those that share a label, the worst."""
        page.most(P + "status", (label,), float(found.status))
        page.most(ACTIVE, (label,), float(found.status is Status.ACTIVE))
        page.least(P + "admit_ratio", (label,), found.admission.admit_ratio)
        if found.status is not Status.UNKNOWN and found.member is not None:
            page.most(P + "pressure", (label,), found.pressure)
        if (record := found.state.record) is None:
            return
        if (
            found.status is not Status.UNKNOWN
            and (diagnosis := reported_diagnosis(found.member, found.status)) is not None
        ):
            page.most(P + "diagnosis", (label, diagnosis.value), 1.0)
        for alert in record.alerts if label != OTHER else ():
            page.most(P + "alerts", (label, alert.name, alert.state), 1.0)

    def _measured(self, page: _Page, label: str, found: SubjectAnswer, now: Now) -> None:
        """What was last read of the consumer that speaks for the subject; what is not known has no series."""
        if (newest := found.state.newest_proof) is not None:
            page.most(P + "sample_age_seconds", (label,), max(0.0, now.mono - newest))
        if found.member is None or (reading := found.member.reading) is None:
            return
        page.most(P + "drain_seconds", (label,), reading.drain)
        for percentile, value in (("p50", reading.p50), ("p95", reading.p95), ("p99", reading.p99)):
            page.most(P + "latency_seconds", (label, percentile), None if value is None else value / 1000)
        page.most("router_intake_processing_latency_p95", (label,), reading.p95)
        page.add("router_intake_inflight_messages", (label,), reading.inflight)

    def _consumers(self, page: _Page, name: str, label: str, state: SubjectState) -> None:
        for key, member in state.members.items():
            if member.reading is None:
                continue
            stream, consumer = self._place(name, label, key)
            page.add(P + "pending_messages", (label, stream, consumer), member.reading.pending)
            page.add(P + "inflight_messages", (label, stream, consumer), member.reading.inflight)
            page.add("router_jetstream_pending_messages", (label, consumer), member.reading.pending)

    def _place(self, name: str, label: str, key: ConsumerKey) -> ConsumerKey:
        """The consumer itself while there is room for its series, `_other` beyond."""
        if label == OTHER:
            return ConsumerKey(OTHER, OTHER)
        if (name, key) not in self._places:
            if len(self._places) >= CONSUMERS_PER_SUBJECT * self._metrics.max_subjects:
                return ConsumerKey(OTHER, OTHER)
            self._places.add((name, key))
        return key


class _Page:
    """The values of one scrape. Those that fall under the same labels become one: their sum, the most or the least."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}

    def add(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, lambda a, b: a + b)

    def most(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, max)

    def least(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, min)

    def _put(self, name: str, labels: Labels, value: float | None, both: Callable[[float, float], float]) -> None:
        if value is None or not math.isfinite(value):
            return
        values = self._values.setdefault(name, {})
        values[labels] = both(values[labels], value) if labels in values else value

    def families(self) -> Iterator[Metric]:
        spent, help_text, names = TIME_IN_STATUS
        counter = CounterMetricFamily(spent, help_text, labels=names)
        families: list[CounterMetricFamily | GaugeMetricFamily] = [
            *(GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in GAUGES.items()),
            counter,
        ]
        for family in families:
            values = self._values.get(family.name, {})
            first = sorted(values.items(), key=lambda one: -one[1]) if family.name == ACTIVE else values.items()
            for labels, value in first:
                family.add_metric(labels, value)
            yield family
