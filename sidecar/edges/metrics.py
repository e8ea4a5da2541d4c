"""The metric catalogue. Counters are kept here, gauges are read from the book at scrape; labels are bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.book import Book
from sidecar.core.changes import worst
from sidecar.core.model import Now, Status
from sidecar.core.state import SubjectState
from sidecar.ports import Clock

OTHER = "_other"
"""The subject under which everything beyond `metrics.max_subjects` is summed."""
PREFIX = "router_backpressure_"
FASTEST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Every counter and histogram, and the names of the subjects that have a label of their own."""

    def __init__(self, max_subjects: int) -> None:
        # A registry of our own: what libraries put into the global one is not ours to publish.
        self.registry = registry = CollectorRegistry()
        self._max, self._labels = max_subjects, set[str]()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        self._events = counter(
            "events", "Events in the events stream. Rising: look at the subject's status.", "subject", "event_type"
        )
        self._recoveries = counter(
            "recovery", "Recoveries told. Rising fast: the marks are too close to the load.", "subject"
        )
        self._decisions = counter(
            "decisions", "Decisions answered. Many rejects: the subject is overloaded.", "subject", "role", "action"
        )
        self._transitions = counter(
            "transitions", "Status changes stored. Rising fast: raise the hold or the marks.", "subject", "from", "to"
        )
        self._requests = counter(
            "api_requests",
            "JetStream API requests. Other outcomes than ok: the server is slow or refuses.",
            "op",
            "outcome",
        )
        self._dropped = counter(
            "dropped", "What was refused, lost or tried again, by kind. The log says each kind once.", "what"
        )
        self._rebuilds = counter(
            "connection_rebuilds", "NATS clients replaced. Rising: the link or the credentials.", "connection"
        )
        self._decided = Histogram(
            PREFIX + "decision_duration_seconds",
            "Time to decide. High: too many wildcards match, or the CPU is throttled.",
            buckets=FASTEST,
            registry=registry,
        )
        self._observed = Histogram(
            PREFIX + "observe_duration_seconds",
            "Time the server takes for a list of consumers. High: it is overloaded, or a node is down.",
            registry=registry,
        )

    def label(self, subject: str) -> str:
        """The subject itself for the first `max_subjects`, `_other` for the rest."""
        if subject in self._labels:
            return subject
        if len(self._labels) >= self._max:
            return OTHER
        self._labels.add(subject)
        return subject

    def event(self, subject: str, type: str) -> None:
        self._events.labels(self.label(subject), type).inc()
        if type == "recovery":
            self._recoveries.labels(self.label(subject)).inc()

    def transition(self, subject: str, was: str, now: str) -> None:
        self._transitions.labels(self.label(subject), was, now).inc()

    def decision(self, subject: str, role: str, action: str, seconds: float) -> None:
        self._decisions.labels(self.label(subject), role, action).inc()
        self._decided.observe(seconds)

    def dropped(self, what: str, n: int = 1) -> None:
        self._dropped.labels(what).inc(n)

    def api_request(self, op: str, outcome: str, seconds: float) -> None:
        self._requests.labels(op, outcome).inc()

    def rebuilt(self, connection: str) -> None:
        self._rebuilds.labels(connection).inc()

    def observed(self, seconds: float) -> None:
        self._observed.observe(seconds)


class Gauges(Collector):
    """Reads the book at scrape, from another thread: every mapping is copied first, every value in it is frozen."""

    def __init__(self, book: Book, metrics: Metrics, clock: Clock, leads: Callable[[], bool]) -> None:
        self._book, self._metrics, self._clock, self._leads = book, metrics, clock, leads

    def collect(self) -> Iterator[Any]:
        now = self._clock.now()
        states = dict(self._book.subjects)
        yield from self._own(states, now)
        yield from self._routers(states)
        lead = GaugeMetricFamily(PREFIX + "leader", "Whether this replica leads its group.", labels=["group"])
        lead.add_metric([self._book.settings.group], float(self._leads()))
        info = GaugeMetricFamily(PREFIX + "build_info", "Always 1; the version is in the label.", labels=["version"])
        info.add_metric([__version__], 1.0)
        yield from (lead, info)

    def _own(self, states: dict[str, SubjectState], now: Now) -> Iterable[Any]:
        status = _gauge("status", "-1 unknown, 0 inactive, 1 warning, 2 active. High: ask get.status for the reasons.")
        pressure = _gauge("pressure", "Largest value over its mark; 1 is at the mark.")
        ratio = _gauge("admit_ratio", "Share of requests gateways are told to admit.")
        drain = _gauge("drain_seconds", "Seconds until what waits is through. High: add workers.")
        age = _gauge("sample_age_seconds", "Age of the newest proof. High: the server is slow or away.")
        latency = _gauge("latency_seconds", "Delivery to ack. High: workers are slow or hang.", "subject", "quantile")
        per = ("subject", "stream", "consumer")
        pending = _gauge(
            "pending_messages", "Messages not yet delivered. High: consumers are too slow or do not pull.", *per
        )
        inflight = _gauge("inflight_messages", "Delivered, not acknowledged. High: workers are slow or hang.", *per)
        spent = CounterMetricFamily(
            PREFIX + "time_in_status_seconds", "Seconds in each status.", labels=["subject", "status"]
        )
        worsts: defaultdict[tuple[str, ...], float] = defaultdict(lambda: -1.0)
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for name, state in states.items():
            label = self._metrics.label(name)
            worsts["status", label] = max(worsts["status", label], float(_status(state)))
            for word, seconds in self._book.time_in(name, now).items():
                sums["spent", label, word] += seconds
            for key, member in state.members.items():
                where = (label, *key) if label != OTHER else (label, OTHER, OTHER)
                if member.reading is not None:
                    sums["pending", *where] += member.reading.pending
                    sums["inflight", *where] += member.reading.inflight or 0
            if label == OTHER:
                continue
            loudest = worst(state.members.values())
            ratio.add_metric([label], state.record.verdict.admit_ratio if state.record else 1.0)
            if loudest is None or loudest.reading is None or loudest.proof is None:
                continue
            reading = loudest.reading
            pressure.add_metric([label], loudest.pressure)
            age.add_metric([label], max(0.0, now.mono - loudest.proof))
            if reading.drain is not None:
                drain.add_metric([label], reading.drain)
            for quantile, value in (("0.5", reading.p50), ("0.95", reading.p95), ("0.99", reading.p99)):
                if value is not None:
                    latency.add_metric([label, quantile], value / 1000)
        families: dict[str, Any] = {"pending": pending, "inflight": inflight, "spent": spent, "status": status}
        for (family, *labels), value in [*worsts.items(), *sums.items()]:
            families[family].add_metric(labels, value)
        return (status, pressure, ratio, drain, age, latency, pending, inflight, spent)

    def _routers(self, states: dict[str, SubjectState]) -> Iterable[Any]:
        """The names the router's present dashboards and alert rules use."""
        active = GaugeMetricFamily("router_intake_backpressure_active", "1 while active.", labels=["subject"])
        pending = GaugeMetricFamily("router_jetstream_pending_messages", "As above.", labels=["subject", "consumer"])
        latency = GaugeMetricFamily("router_intake_processing_latency_p95", "Milliseconds.", labels=["subject"])
        inflight = GaugeMetricFamily("router_intake_inflight_messages", "As above.", labels=["subject"])
        for name, state in states.items():
            if self._metrics.label(name) == OTHER:
                continue
            active.add_metric([name], float(_status(state) is Status.ACTIVE))
            by_consumer: defaultdict[str, int] = defaultdict(int)
            for key, member in state.members.items():
                if member.reading is not None:
                    by_consumer[key.consumer] += member.reading.pending
            for consumer, value in by_consumer.items():
                pending.add_metric([name, consumer], value)
            loudest = worst(state.members.values())
            if loudest is not None and loudest.reading is not None:
                inflight.add_metric([name], loudest.reading.inflight or 0)
                latency.add_metric([name], loudest.reading.p95 or 0.0)
        return (active, pending, latency, inflight)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels or ("subject",))


def _status(state: SubjectState) -> Status:
    known = (
        state.record is not None and not state.record.lost and any(m.proof is not None for m in state.members.values())
    )
    return state.record.status if state.record is not None and known else Status.UNKNOWN
