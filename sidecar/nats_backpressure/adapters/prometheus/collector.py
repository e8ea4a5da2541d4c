"""The gauges, computed from the state of the service at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

from nats_backpressure import __version__
from nats_backpressure.adapters.prometheus.definitions import (
    ACTIVE,
    CONSUMERS_PER_SUBJECT,
    FRESHNESS,
    LEFT_OUT,
    OTHER,
    TIME_IN_STATUS,
    P,
    own_label,
)
from nats_backpressure.adapters.prometheus.exposition import escape
from nats_backpressure.adapters.prometheus.page import Page
from nats_backpressure.adapters.prometheus.shared_time import SharedTime
from nats_backpressure.core.model.admission import Admission
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState, newest_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Freshness, Signal, StaleReason, Status
from nats_backpressure.runtime.health import Health
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

    def give_back(self, subjects: Container[str], streams: Container[str]) -> None:
        """Drop the labels and series of all others: they are not watched any more."""


class Answer(Protocol):
    """What a gateway would get for a subject now."""

    @property
    def state(self) -> SubjectState: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def status(self) -> Status: ...
    @property
    def freshness(self) -> Freshness: ...
    @property
    def stale_reason(self) -> StaleReason | None: ...
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
        self,
        service: ServiceView,
        answer: Callable[[SubjectState, Now], Answer],
        labels: SubjectLabels,
        clock: Clock,
        health: Callable[[Now], Health],
    ) -> None:
        """`answer` and `health` are called in the thread of the scrape."""
        self._service, self._answer, self._labels, self._clock = service, answer, labels, clock
        self._health = health
        self._consumers = set[tuple[str, ConsumerKey]]()
        """Consumers with series of their own, by subject."""
        self._shared_time = SharedTime()

    def text(self, pause: Callable[[], None]) -> Iterator[str]:
        """The page of the states, in pieces. `pause` is called between two short pieces of work."""
        now = self._clock.now()
        self._labels.give_back(self._service.subjects, self._service.looks)
        states, page = dict(self._service.subjects), Page()
        if self._full:  # consumers that are gone make room for others
            self._consumers &= {(name, key) for name, state in states.items() for key in state.members}
        self._add_subjects(page, states, now, pause)
        self._add_streams(page)
        _add_health(page, self._health(now))
        for piece in page.text():
            yield piece
            pause()

    def _add_subjects(
        self, page: Page, states: Mapping[str, SubjectState], now: Now, pause: Callable[[], None]
    ) -> None:
        freshness, unsent, shared = Counter[tuple[str, str]](), 0, dict[str, Mapping[str, float]]()
        for n, (name, state) in enumerate(states.items(), start=1):
            if n % SUBJECTS_AT_ONCE == 0:
                pause()
            label = self._labels.label(name)
            answer = self._answer(state, now)
            if answer.policy.mode == "observe":
                self._labels.dry_run(label)
            freshness[self._add_freshness(page, name, label, answer)] += 1
            self._add_readings(page, label, answer, now)
            self._add_consumers(page, name, label, state)
            unsent += _unsent(state)
            spent = self._service.time_in(name, now)
            if label == OTHER:
                shared[name] = spent
            else:
                _add_time(page, label, spent)
        _add_time(page, OTHER, self._shared_time.total(shared))
        for pair in FRESHNESS:
            page.add(P + "subjects", pair, freshness[pair])
        page.add(P + "unsent_events", (), unsent)

    def _add_freshness(self, page: Page, name: str, label: str, answer: Answer) -> tuple[str, str]:
        """How sure the status is, and the status; returns the former, with the reason. A subject without consumers has
        no status that could be lost."""
        gone = answer.freshness is Freshness.UNKNOWN and self._service.is_gone(name)
        freshness = answer.freshness.value, "gone" if gone else _reason(answer)
        page.maximum(P + "freshness", (label, *freshness), 1.0)
        if not gone:
            self._add_status(page, label, answer)
        return freshness

    def _add_status(self, page: Page, label: str, answer: Answer) -> None:
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

    def _add_readings(self, page: Page, label: str, answer: Answer, now: Now) -> None:
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
        page.add(P + "arrival_rate", (label,), reading.arrival_rate)
        page.add(P + "ack_rate", (label,), reading.ack_rate)
        if (marks := answer.member.marks) is not None and label != OTHER:
            each = (marks.pending, marks.inflight, marks.latency, marks.drain)
            for signal, mark in zip(Signal, each, strict=True):
                page.add(P + "overload_mark", (label, signal.value), None if mark is None else mark.overload)

    def _add_consumers(self, page: Page, name: str, label: str, state: SubjectState) -> None:
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
        return ConsumerKey(own_label(key.stream), own_label(key.consumer))

    def _add_streams(self, page: Page) -> None:
        for look in list(self._service.looks.values())[: self._labels.max_subjects]:
            page.maximum(P + "stream_fill", (own_label(look.name),), look.fill)
            page.maximum(P + "reading", (own_label(look.name),), float(self._service.reads(look.name)))
        page.add(P + "read_stretch", (), self._service.stretch)
        page.add(P + "build_info", (__version__,), 1.0)


def _reason(answer: Answer) -> str:
    """Why the status is not known; none where it is."""
    if answer.freshness is not Freshness.UNKNOWN:
        return answer.stale_reason or "none"
    if answer.state.record is None or answer.state.unstored:
        return "unstored"
    return "unread" if answer.state.newest_proof is None else "age"


def _add_time(page: Page, label: str, seconds: Mapping[str, float]) -> None:
    for status, spent in seconds.items():
        page.add(TIME_IN_STATUS[0], (label, status), spent)


def _unsent(state: SubjectState) -> int:
    """Events of the subject that are not published yet."""
    if (record := state.record) is None or not record.unsent:
        return 0
    return sum(event.id not in state.published for event in record.unsent)


def _add_health(page: Page, health: Health) -> None:
    """What is known of the process as a whole."""
    for connection, connected in health.connected.items():
        page.add(P + "connected", (connection,), float(connected))
    for reason in LEFT_OUT:
        page.add(P + "consumers_left_out", (reason,), float(health.left_out.get(reason, 0)))
    values = {
        "streams": health.streams,
        "consumers": health.consumers,
        "observing": health.observing,
        "reading_age_seconds": health.reading_age,
        "reading_interval_seconds": health.interval,
        "heartbeat_age_seconds": health.heartbeat_age,
        "write_delay_seconds": health.write_delay,
        "policies_refused": health.policies_refused,
        "reload_successful": health.file_is_good,
        "reload_timestamp_seconds": health.file_taken_at,
    }
    for name, value in values.items():
        page.add(P + name, (), None if value is None else float(value))
