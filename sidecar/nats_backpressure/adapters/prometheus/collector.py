"""The gauges, computed from the state of the service at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

from nats_backpressure import __version__
from nats_backpressure.adapters.prometheus.definitions import (
    CONSUMERS_PER_SUBJECT,
    FRESHNESS,
    LEFT_OUT,
    OTHER,
    TIME_IN_STATUS,
    P,
    own_label,
)
from nats_backpressure.adapters.prometheus.page import Page
from nats_backpressure.adapters.prometheus.shared_time import SharedTime
from nats_backpressure.adapters.prometheus.shown import Consumed, Judged, Measured, Shown
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState, newest_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Freshness, StaleReason, Status
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


class GatewayAnswer(Protocol):
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
    def admission(self) -> GatewayAdmission: ...
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
        answer: Callable[[SubjectState, Now], GatewayAnswer],
        labels: SubjectLabels,
        clock: Clock,
        health: Callable[[Now], Health],
    ) -> None:
        """`answer` and `health` are called in the thread of the scrape."""
        self._service, self._answer, self._labels, self._clock = service, answer, labels, clock
        self._health = health
        self._consumers = set[tuple[str, ConsumerKey]]()
        """Consumers with series of their own, by subject."""
        self._page, self._shared_time = Page(), SharedTime()

    def text(self, pause: Callable[[], None]) -> Iterator[str]:
        """The page of the states, in pieces. `pause` is called between two short pieces of work. One scrape at a time:
        what does not change is kept for the next one."""
        now = self._clock.now()
        self._labels.give_back(self._service.subjects, self._service.looks)
        states = dict(self._service.subjects)
        if self._full:  # consumers that are gone make room for others
            self._consumers &= {(name, key) for name, state in states.items() for key in state.members}
        self._page.begin(states)
        self._add_subjects(states, now, pause)
        self._add_streams()
        self._add_health(self._health(now))
        for piece in self._page.text():
            yield piece
            pause()

    def _add_subjects(self, states: Mapping[str, SubjectState], now: Now, pause: Callable[[], None]) -> None:
        page, freshness, unsent = self._page, Counter[tuple[str, str]](), 0
        shared = dict[str, Mapping[str, float]]()
        for n, (name, state) in enumerate(states.items(), start=1):
            if n % SUBJECTS_AT_ONCE == 0:
                pause()
            label, answer = self._labels.label(name), self._answer(state, now)
            if answer.policy.mode == "observe":
                self._labels.dry_run(label)
            shown = self._shown(name, label, answer)
            page.subject(name, shown)
            freshness[shown.freshness] += 1
            if (newest := newest_of(state, self._service.proofs(name))) is not None:
                page.add(P + "sample_age_seconds", (label,), max(0.0, now.mono - newest))
            unsent += _unsent(state)
            spent = self._service.time_in(name, now)
            if label == OTHER:
                shared[name] = spent
            else:
                self._add_time(label, spent)
        self._add_time(OTHER, self._shared_time.total(shared))
        for pair in FRESHNESS:
            page.add(P + "subjects", pair, freshness[pair])
        page.add(P + "unsent_events", (), unsent)

    def _shown(self, name: str, label: str, answer: GatewayAnswer) -> Shown:
        gone = answer.freshness is Freshness.UNKNOWN and self._service.is_gone(name)
        consumers = tuple(
            [
                Consumed(key, label != OTHER and self._has_own_series(name, key), reading.pending, reading.inflight)
                for key, member in answer.state.members.items()
                if (reading := member.reading) is not None
            ]
        )
        return Shown(
            label,
            (answer.freshness.value, "gone" if gone else _reason(answer)),
            None if gone else _judged(answer),
            _measured(answer.member),
            consumers,
        )

    @property
    def _full(self) -> bool:
        """Whether as many consumers as allowed have series of their own."""
        return len(self._consumers) >= CONSUMERS_PER_SUBJECT * self._labels.max_subjects

    def _has_own_series(self, name: str, key: ConsumerKey) -> bool:
        """Whether there is room for the series of this consumer; else it is one of `_other`."""
        if (name, key) not in self._consumers:
            if self._full:
                return False
            self._consumers.add((name, key))
        return True

    def _add_streams(self) -> None:
        page = self._page
        for look in list(self._service.looks.values())[: self._labels.max_subjects]:
            page.add(P + "stream_fill", (own_label(look.name),), look.fill)
            page.add(P + "reading", (own_label(look.name),), float(self._service.reads(look.name)))
        page.add(P + "read_stretch", (), self._service.stretch)
        page.add(P + "build_info", (__version__,), 1.0)

    def _add_time(self, label: str, seconds: Mapping[str, float]) -> None:
        for status, spent in seconds.items():
            self._page.add(TIME_IN_STATUS[0], (label, status), spent)

    def _add_health(self, health: Health) -> None:
        """What is known of the process as a whole."""
        page = self._page
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


def _reason(answer: GatewayAnswer) -> str:
    """Why the status is not known; none where it is."""
    if answer.freshness is not Freshness.UNKNOWN:
        return answer.stale_reason or "none"
    if answer.state.record is None or answer.state.unstored:
        return "unstored"
    return "unread" if answer.state.newest_proof is None else "age"


def _judged(answer: GatewayAnswer) -> Judged:
    """What a gateway would get now."""
    record, known = answer.state.record, answer.status is not Status.UNKNOWN
    return Judged(
        answer.status,
        answer.admission.admit_ratio,
        answer.pressure if known and answer.member is not None else None,
        reported_diagnosis(answer.member, answer.status) if known and record is not None else None,
        () if record is None else record.alerts,
    )


def _measured(member: Member | None) -> Measured | None:
    if member is None or (reading := member.reading) is None:
        return None
    return Measured(
        reading.drain,
        reading.p50,
        reading.p95,
        reading.p99,
        reading.inflight,
        reading.arrival_rate,
        reading.ack_rate,
        member.marks,
    )


def _unsent(state: SubjectState) -> int:
    """Events of the subject that are not published yet."""
    if (record := state.record) is None or not record.unsent:
        return 0
    return sum(event.id not in state.published for event in record.unsent)
