"""The gauges, computed from the state of the service at each scrape."""

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
from nats_backpressure.core.model.admission import Admission
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.view import ServiceView


class SubjectLabels(Protocol):
    """Which subjects have labels of their own; see Counters."""

    max_subjects: int

    def label(self, subject: str) -> str: ...
    def dry_run(self, label: str) -> None: ...


class Answer(Protocol):
    """What a gateway would get for a subject now."""

    @property
    def state(self) -> SubjectState: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def status(self) -> Status: ...
    @property
    def admission(self) -> Admission: ...
    @property
    def pressure(self) -> float: ...
    @property
    def member(self) -> Member | None:
        """The worst member."""


class StateCollector(Collector):
    """Reads the service from another thread: it copies every mapping first, and every value in it is frozen."""

    def __init__(
        self, service: ServiceView, answer: Callable[[SubjectState, Now], Answer], labels: SubjectLabels, clock: Clock
    ) -> None:
        """`answer` is called in the thread of the scrape."""
        self._service, self._answer, self._labels, self._clock = service, answer, labels, clock
        self._consumers = set[tuple[str, ConsumerKey]]()
        """Consumers with series of their own, by subject."""

    def collect(self) -> Iterator[Metric]:
        now = self._clock.now()
        states = dict(self._service.subjects)
        page = _Page()
        # Consumers that are gone make room for others.
        self._consumers &= {(name, key) for name, state in states.items() for key in state.members}
        for name, state in states.items():
            label = self._labels.label(name)
            answer = self._answer(state, now)
            if answer.policy.mode == "observe":
                self._labels.dry_run(label)
            self._add_status(page, label, answer)
            self._add_readings(page, label, answer, now)
            self._add_consumers(page, name, label, state)
            for status, seconds in self._service.time_in(name, now).items():
                page.add(TIME_IN_STATUS[0], (label, status), seconds)
        for look in list(self._service.looks.values())[: self._labels.max_subjects]:
            page.maximum(P + "stream_fill", (look.name,), look.fill)
        page.add(P + "build_info", (__version__,), 1.0)
        yield from page.families()

    def _add_status(self, page: _Page, label: str, answer: Answer) -> None:
        """What a gateway would get now; of subjects that share a label, the worst."""
        page.maximum(P + "status", (label,), float(answer.status))
        page.maximum(ACTIVE, (label,), float(answer.status is Status.ACTIVE))
        page.minimum(P + "admit_ratio", (label,), answer.admission.admit_ratio)
        if answer.status is not Status.UNKNOWN and answer.member is not None:
            page.maximum(P + "pressure", (label,), answer.pressure)
        if (record := answer.state.record) is None:
            return
        if (
            answer.status is not Status.UNKNOWN
            and (diagnosis := reported_diagnosis(answer.member, answer.status)) is not None
        ):
            page.maximum(P + "diagnosis", (label, diagnosis.value), 1.0)
        for alert in record.alerts if label != OTHER else ():
            page.maximum(P + "alerts", (label, alert.name, alert.state), 1.0)

    def _add_readings(self, page: _Page, label: str, answer: Answer, now: Now) -> None:
        """The newest reading of the worst member; a value that is not known has no series."""
        if (newest := answer.state.newest_proof) is not None:
            page.maximum(P + "sample_age_seconds", (label,), max(0.0, now.mono - newest))
        if answer.member is None or (reading := answer.member.reading) is None:
            return
        page.maximum(P + "drain_seconds", (label,), reading.drain)
        for percentile, value in (("p50", reading.p50), ("p95", reading.p95), ("p99", reading.p99)):
            page.maximum(P + "latency_seconds", (label, percentile), None if value is None else value / 1000)
        page.maximum("router_intake_processing_latency_p95", (label,), reading.p95)
        page.add("router_intake_inflight_messages", (label,), reading.inflight)

    def _add_consumers(self, page: _Page, name: str, label: str, state: SubjectState) -> None:
        for key, member in state.members.items():
            if member.reading is None:
                continue
            stream, consumer = self._consumer_labels(name, label, key)
            page.add(P + "pending_messages", (label, stream, consumer), member.reading.pending)
            page.add(P + "inflight_messages", (label, stream, consumer), member.reading.inflight)
            page.add("router_jetstream_pending_messages", (label, consumer), member.reading.pending)

    def _consumer_labels(self, name: str, label: str, key: ConsumerKey) -> ConsumerKey:
        """The consumer itself while there is room for its series, else `_other`."""
        if label == OTHER:
            return ConsumerKey(OTHER, OTHER)
        if (name, key) not in self._consumers:
            if len(self._consumers) >= CONSUMERS_PER_SUBJECT * self._labels.max_subjects:
                return ConsumerKey(OTHER, OTHER)
            self._consumers.add((name, key))
        return key


class _Page:
    """The values of one scrape. Values with the same labels become one: their sum, maximum or minimum."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}

    def add(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, lambda a, b: a + b)

    def maximum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, max)

    def minimum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, min)

    def _put(self, name: str, labels: Labels, value: float | None, merge: Callable[[float, float], float]) -> None:
        if value is None or not math.isfinite(value):
            return
        values = self._values.setdefault(name, {})
        values[labels] = merge(values[labels], value) if labels in values else value

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
