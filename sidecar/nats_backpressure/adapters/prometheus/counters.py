"""The counters and histograms, and which subjects have labels of their own: the number of labels is bounded."""

from __future__ import annotations

from itertools import product
from threading import Lock

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.registry import Collector

from nats_backpressure.adapters.prometheus.definitions import (
    ACTIVE,
    CONNECTIONS,
    COUNTERS,
    DROPPED,
    HISTOGRAMS,
    OPS,
    OTHER,
    OUTCOMES,
    ROLES,
    TRANSITIONS,
    P,
)
from nats_backpressure.protocol.values import Action, EventType


class Counters:
    """Every counter and histogram. The first `max_subjects` subjects have labels of their own. A series whose labels
    are known starts at 0."""

    def __init__(self, max_subjects: int) -> None:
        # `_created` series would double all counters, and no dashboard reads them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.max_subjects = max_subjects
        self._registry = CollectorRegistry()
        self._labels, self._lock = set[str](), Lock()
        self._shared = False
        """Whether a subject has the label `_other`."""
        self._counters = {
            name: Counter(P + name, text, labels, registry=None) for name, (text, labels) in COUNTERS.items()
        }
        self._decided, self._observed = (
            Histogram(P + name, text, buckets=buckets, registry=None) for name, (text, buckets) in HISTOGRAMS.items()
        )
        self._zero("dropped", *((what,) for what in DROPPED))
        self._zero("api_requests", *product(OPS, OUTCOMES))
        self._zero("connection_rebuilds", *((name,) for name in CONNECTIONS))

    def expose(self, gauges: Collector) -> None:
        """Register the gauges, then everything that is counted here."""
        for collector in (gauges, *self._counters.values(), self._decided, self._observed):
            self._registry.register(collector)

    def page(self) -> bytes:
        """The metrics page. The router's C gateway reads the number after the first occurrence of the metric's name,
        which would be in its HELP; a comment before it, which Prometheus ignores, has that number."""
        text = generate_latest(self._registry)
        _, mark, rest = text.partition(f"\n{ACTIVE}{{".encode())
        if not mark:
            return text
        largest = rest.partition(b"\n")[0].rpartition(b" ")[2]  # the collector sorts them, largest first
        return b"# %s %d is the largest of all subjects\n%s" % (ACTIVE.encode(), float(largest), text)

    def label(self, subject: str) -> str:
        """The subject itself for the first `max_subjects`, `_other` for the rest. Two threads call it."""
        with self._lock:
            if subject in self._labels:
                return subject
            label = subject if len(self._labels) < self.max_subjects else OTHER
            if label != OTHER:
                self._labels.add(label)
            if label != OTHER or not self._shared:
                self._start_series(label)
                self._shared = label == OTHER
            return label

    def dry_run(self, label: str) -> None:
        """Start the series of what policies with mode `observe` would have returned for a subject."""
        self._zero("would", *product((label,), ROLES, Action))

    def _start_series(self, label: str) -> None:
        self._zero("events", *product((label,), EventType))
        self._zero("recovery", (label,))
        self._zero("decisions", *product((label,), ROLES, Action))
        self._zero("transitions", *((label, before, after) for before, after in TRANSITIONS))

    def _zero(self, name: str, *series: tuple[str, ...]) -> None:
        for labels in series:
            self._counters[name].labels(*labels)

    def event(self, subject: str, type: str) -> None:
        label = self.label(subject)
        self._counters["events"].labels(label, type).inc()
        if type == "recovery":
            self._counters["recovery"].labels(label).inc()

    def transition(self, subject: str, before: str, after: str) -> None:
        self._counters["transitions"].labels(self.label(subject), before, after).inc()

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None = None) -> None:
        label = self.label(subject)
        self._counters["decisions"].labels(label, role, action).inc()
        if would is not None:
            self._counters["would"].labels(label, role, would).inc()
        self._decided.observe(seconds)

    def dropped(self, what: str, n: int = 1) -> None:
        self._counters["dropped"].labels(what).inc(n)

    def api_request(self, op: str, outcome: str, seconds: float) -> None:
        self._counters["api_requests"].labels(op, outcome).inc()

    def rebuilt(self, connection: str) -> None:
        self._counters["connection_rebuilds"].labels(connection).inc()

    def observed(self, seconds: float) -> None:
        self._observed.observe(seconds)
