"""The metric catalogue. Counters are kept here, gauges are read from the book at scrape; labels are bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Lock

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.book import Book
from sidecar.core.changes import proof
from sidecar.core.model import ConsumerKey, Now, Status
from sidecar.core.state import SubjectState
from sidecar.finding import Finder, Finding
from sidecar.ports import Clock

OTHER = "_other"
"""The subject under which everything beyond `metrics.max_subjects` is summed."""
CONSUMERS_PER_SUBJECT = 4
"""Times `max_subjects`: consumers with series of their own."""
P = "router_backpressure_"
FASTEST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SLOWEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

SUBJECT = ("subject",)
CONSUMER = ("subject", "stream", "consumer")
Labels = tuple[str, ...]

COUNTERS: dict[str, tuple[str, Labels]] = {
    "events": ("Events told, by type. Rising: look at the subject's status.", ("subject", "event_type")),
    "recovery": ("Recoveries told. Rising fast: the marks are too close to the load, or the hold is short.", SUBJECT),
    "decisions": ("Decisions answered. Many rejects: the subject is overloaded.", ("subject", "role", "action")),
    "transitions": ("Status changes stored. Rising fast: move the marks or the hold.", ("subject", "from", "to")),
    "api_requests": (
        "JetStream API requests. Outcomes other than ok: the server is slow, away or refuses.",
        ("op", "outcome"),
    ),
    "dropped": ("What was refused, lost or tried again. Rising: the log says why, by the same word.", ("what",)),
    "connection_rebuilds": ("NATS clients replaced. Rising: look at the link, then the credentials.", ("connection",)),
}
TIME_IN_STATUS = "Seconds in each status since this process knew the subject. Much active or unknown: act on it."
GAUGES: dict[str, tuple[str, Labels]] = {
    P + "status": ("-1 unknown, 0 inactive, 1 warning, 2 active. High: ask get.status for the reasons.", SUBJECT),
    P + "pressure": ("Largest value over its mark; 1 is at the mark. High: add workers or admit less.", SUBJECT),
    P + "admit_ratio": ("Share of requests gateways are told to admit. Low: the subject is overloaded.", SUBJECT),
    P + "pending_messages": ("Not yet delivered. High: consumers are too few, too slow, or do not pull.", CONSUMER),
    P + "inflight_messages": ("Delivered, not acknowledged. High: workers are slow or hang.", CONSUMER),
    P + "latency_seconds": ("Delivery to acknowledgement. High: workers are slow or hang.", ("subject", "quantile")),
    P + "drain_seconds": ("Seconds until what waits is through at the present rate. High: add workers.", SUBJECT),
    P + "sample_age_seconds": ("Age of the newest proof. High: the server is slow or away, or hears us not.", SUBJECT),
    P + "leader": ("Whether this replica leads its group. Not 1 in all of a group: nobody publishes.", ("group",)),
    P + "build_info": ("Always 1; the version is in the label.", ("version",)),
    "router_intake_backpressure_active": ("1 while active. High: ask get.status for the reasons.", SUBJECT),
    "router_jetstream_pending_messages": ("Not yet delivered. High: consumers are too slow.", ("subject", "consumer")),
    "router_intake_processing_latency_p95": ("Milliseconds. High: workers are slow or hang.", SUBJECT),
    "router_intake_inflight_messages": ("Delivered, not acknowledged. High: workers are slow or hang.", SUBJECT),
}


class Metrics:
    """Every counter and histogram, and which subjects have a label of their own: the first that come."""

    def __init__(self, max_subjects: int, registry: CollectorRegistry | None = None) -> None:
        # `_created` series would double all counters, and no dashboard reads them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = registry or CollectorRegistry()
        self.max_subjects = max_subjects
        self._labels, self._lock = set[str](), Lock()
        self._counters = {
            name: Counter(P + name, text, labels, registry=registry) for name, (text, labels) in COUNTERS.items()
        }
        self._decided = Histogram(
            P + "decision_duration_seconds",
            "Time to decide. High: too many wildcards match, or the CPU is throttled.",
            buckets=FASTEST,
            registry=registry,
        )
        self._observed = Histogram(
            P + "observe_duration_seconds",
            "Time the server takes for a list of consumers. High: it is overloaded, or a node is down.",
            buckets=SLOWEST,
            registry=registry,
        )

    def label(self, subject: str) -> str:
        """The subject itself for the first `max_subjects`, `_other` for the rest. Asked from two threads."""
        with self._lock:
            if subject not in self._labels:
                if len(self._labels) >= self.max_subjects:
                    return OTHER
                self._labels.add(subject)
            return subject

    def event(self, subject: str, type: str) -> None:
        label = self.label(subject)
        self._counters["events"].labels(label, type).inc()
        if type == "recovery":
            self._counters["recovery"].labels(label).inc()

    def transition(self, subject: str, was: str, now: str) -> None:
        self._counters["transitions"].labels(self.label(subject), was, now).inc()

    def decision(self, subject: str, role: str, action: str, seconds: float) -> None:
        self._counters["decisions"].labels(self.label(subject), role, action).inc()
        self._decided.observe(seconds)

    def dropped(self, what: str, n: int = 1) -> None:
        self._counters["dropped"].labels(what).inc(n)

    def api_request(self, op: str, outcome: str, seconds: float) -> None:
        self._counters["api_requests"].labels(op, outcome).inc()

    def rebuilt(self, connection: str) -> None:
        self._counters["connection_rebuilds"].labels(connection).inc()

    def observed(self, seconds: float) -> None:
        self._observed.observe(seconds)


class Gauges(Collector):
    """Reads the book at scrape, from another thread: every mapping is copied first, every value in it is frozen."""

    def __init__(self, book: Book, metrics: Metrics, clock: Clock, leads: Callable[[], bool]) -> None:
        self._book, self._metrics, self._clock, self._leads = book, metrics, clock, leads
        self._finder = Finder(book)
        self._places = set[tuple[str, ConsumerKey]]()

    def collect(self) -> Iterator[Metric]:
        now = self._clock.now()
        states = dict(self._book.subjects)
        page = _Page()
        # Those that are gone make room; nothing is counted under them.
        self._places &= {(name, key) for name, state in states.items() for key in state.members}
        for name, state in states.items():
            label = self._metrics.label(name)
            found = self._finder.finding(state, now)
            self._judged(page, label, found)
            self._measured(page, label, found, now)
            self._consumers(page, name, label, state)
            for word, seconds in self._book.time_in(name, now).items():
                page.add(P + "time_in_status_seconds", (label, word), seconds)
        page.add(P + "leader", (self._book.settings.group,), float(self._leads()))
        page.add(P + "build_info", (__version__,), 1.0)
        yield from page.families()

    def _judged(self, page: _Page, label: str, found: Finding) -> None:
        """As a gateway would be told now; of those that share a label, the worst."""
        page.most(P + "status", (label,), float(found.status))
        page.most("router_intake_backpressure_active", (label,), float(found.status is Status.ACTIVE))
        page.least(P + "admit_ratio", (label,), found.verdict.admit_ratio)
        if found.status is not Status.UNKNOWN and found.member is not None:
            page.most(P + "pressure", (label,), found.pressure)

    def _measured(self, page: _Page, label: str, found: Finding, now: Now) -> None:
        """What was last read of the consumer that speaks for the subject; what is not known has no series."""
        if (newest := proof(found.state)) is not None:
            page.most(P + "sample_age_seconds", (label,), max(0.0, now.mono - newest))
        if found.member is None or (reading := found.member.reading) is None:
            return
        page.most(P + "drain_seconds", (label,), reading.drain)
        for quantile, value in (("0.5", reading.p50), ("0.95", reading.p95), ("0.99", reading.p99)):
            page.most(P + "latency_seconds", (label, quantile), None if value is None else value / 1000)
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
        spent = P + "time_in_status_seconds"
        counter = CounterMetricFamily(spent, TIME_IN_STATUS, labels=("subject", "status"))
        families: list[CounterMetricFamily | GaugeMetricFamily] = [counter]
        families += [GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in GAUGES.items()]
        for family in families:
            for labels, value in self._values.get(family.name, {}).items():
                family.add_metric(labels, value)
            yield family
