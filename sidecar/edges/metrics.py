"""Counters and histograms, and which subjects have labels of their own: labels are bounded."""

from __future__ import annotations

from threading import Lock

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from sidecar.edges.catalogue import COUNTERS, FASTEST, OTHER, SLOWEST, P


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
