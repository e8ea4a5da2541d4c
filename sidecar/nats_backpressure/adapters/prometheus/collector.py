"""The gauges, computed from the state of the service at each scrape."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from nats_backpressure import __version__
from nats_backpressure.adapters.prometheus.definitions import (
    ACTIVE,
    CONSUMERS_PER_SUBJECT,
    GAUGES,
    OTHER,
    TIME_IN_STATUS,
    P,
)
from nats_backpressure.adapters.prometheus.exposition import Labels, Series, escape, header, joined
from nats_backpressure.core.model.admission import Admission
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState, newest_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.view import ServiceView

SUBJECTS_AT_ONCE = 16
"""Subjects of one metrics page that are computed before a pause, some 0.3 ms of work."""


class SubjectLabels(Protocol):
    """Which subjects have labels of their own; see Counters."""

    max_subjects: int

    def label(self, subject: str) -> str:
        """The value of its label, escaped."""

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


class StateCollector:
    """Reads the service from another thread: it copies every mapping first, and every value in it is frozen."""

    def __init__(
        self, service: ServiceView, answer: Callable[[SubjectState, Now], Answer], labels: SubjectLabels, clock: Clock
    ) -> None:
        """`answer` is called in the thread of the scrape."""
        self._service, self._answer, self._labels, self._clock = service, answer, labels, clock
        self._consumers = set[tuple[str, ConsumerKey]]()
        """Consumers with series of their own, by subject."""

    def text(self, pause: Callable[[], None]) -> Iterator[str]:
        """The page of the states, in pieces. `pause` is called between two short pieces of work."""
        now = self._clock.now()
        states = dict(self._service.subjects)
        page = _Page()
        if self._full:  # consumers that are gone make room for others
            self._consumers &= {(name, key) for name, state in states.items() for key in state.members}
        for n, (name, state) in enumerate(states.items(), start=1):
            if n % SUBJECTS_AT_ONCE == 0:
                pause()
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
            page.maximum(P + "stream_fill", (escape(look.name),), look.fill)
            page.maximum(P + "reading", (escape(look.name),), float(self._service.reads(look.name)))
        page.add(P + "read_stretch", (), self._service.stretch)
        page.add(P + "build_info", (__version__,), 1.0)
        for piece in page.text():
            yield piece
            pause()

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
            page.maximum(P + "alerts", (label, escape(alert.name), alert.state), 1.0)

    def _add_readings(self, page: _Page, label: str, answer: Answer, now: Now) -> None:
        """The newest reading of the worst member; a value that is not known has no series."""
        if (newest := newest_of(answer.state, self._service.proofs(answer.state.subject))) is not None:
            page.maximum(P + "sample_age_seconds", (label,), max(0.0, now.mono - newest))
        if answer.member is None or (reading := answer.member.reading) is None:
            return
        page.maximum(P + "drain_seconds", (label,), reading.drain)
        for percentile, value in (("p50", reading.p50), ("p95", reading.p95), ("p99", reading.p99)):
            page.maximum(P + "latency_seconds", (label, percentile), None if value is None else value / 1000)
        page.maximum("router_intake_processing_latency_p95", (label,), reading.p95)
        page.add("router_intake_inflight_messages", (label,), reading.inflight)

    def _add_consumers(self, page: _Page, name: str, label: str, state: SubjectState) -> None:
        pending = dict[str, int]()
        for key, member in state.members.items():
            if member.reading is None:
                continue
            stream, consumer = self._consumer_labels(name, label, key)
            page.add(P + "pending_messages", (label, stream, consumer), member.reading.pending)
            page.add(P + "inflight_messages", (label, stream, consumer), member.reading.inflight)
            # Without the stream: consumers of one name in several streams are one series.
            pending[consumer] = pending.get(consumer, 0) + member.reading.pending
        for consumer, total in pending.items():
            page.add("router_jetstream_pending_messages", (label, consumer), total)

    @property
    def _full(self) -> bool:
        """Whether as many consumers as allowed have series of their own."""
        return len(self._consumers) >= CONSUMERS_PER_SUBJECT * self._labels.max_subjects

    def _consumer_labels(self, name: str, label: str, key: ConsumerKey) -> ConsumerKey:
        """The consumer itself, escaped, while there is room for its series, else `_other`."""
        if label == OTHER:
            return ConsumerKey(OTHER, OTHER)
        if (name, key) not in self._consumers:
            if self._full:
                return ConsumerKey(OTHER, OTHER)
            self._consumers.add((name, key))
        return ConsumerKey(escape(key.stream), escape(key.consumer))


class _Page:
    """The lines of one scrape. Values of subjects or consumers that share the label `_other` become one: their sum,
    maximum or minimum."""

    def __init__(self) -> None:
        # Text, and no tuples of labels: 100,000 of those would start a full garbage collection.
        self._lines: dict[str, list[str]] = {name: [] for name in _SERIES}
        self._shared: dict[str, dict[Labels, float]] = {name: {} for name in _SERIES}
        self._active: list[str] = []
        """The lines of the subjects that are active."""

    def add(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, operator.add)

    def maximum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, max)

    def minimum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, min)

    def _put(self, name: str, labels: Labels, value: float | None, merge: Callable[[float, float], float]) -> None:
        if value is None or not math.isfinite(value):
            return
        if OTHER in labels:
            shared = self._shared[name]
            shared[labels] = merge(shared[labels], value) if labels in shared else value
        else:
            self._put_line(name, labels, value)

    def text(self) -> Iterator[str]:
        for name, shared in self._shared.items():
            for labels, value in shared.items():
                self._put_line(name, labels, value)
        # The largest first: the router's C gateway reads the number after the first occurrence of the metric's name,
        # which would be in its HELP; a comment before it, which Prometheus ignores, has that number.
        if self._active or self._lines[ACTIVE]:
            yield f"# {ACTIVE} {bool(self._active):d} is the largest of all subjects\n"
        for name, (help_text, _) in GAUGES.items():
            yield header(name, "gauge", help_text)
            yield from joined(chain(self._active if name == ACTIVE else (), self._lines[name]))
        yield header(TIME_IN_STATUS[0] + "_total", "counter", TIME_IN_STATUS[1])
        yield from joined(self._lines[TIME_IN_STATUS[0]])

    def _put_line(self, name: str, labels: Labels, value: float) -> None:
        lines = self._active if value and name == ACTIVE else self._lines[name]
        lines.append(_SERIES[name](labels, value))


_SERIES = {name: Series(name, names).line for name, (_, names) in GAUGES.items()} | {
    TIME_IN_STATUS[0]: Series(TIME_IN_STATUS[0] + "_total", TIME_IN_STATUS[2]).line
}
