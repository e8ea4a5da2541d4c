"""The counters and histograms, and which subjects have labels of their own: the number of labels is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from itertools import product
from threading import Lock

from nats_backpressure.adapters.prometheus.counter_lines import CounterLines
from nats_backpressure.adapters.prometheus.definitions import (
    CONNECTIONS,
    COUNTERS,
    HISTOGRAMS,
    OPS,
    OTHER,
    OUTCOMES,
    RELOADS,
    ROLES,
    SUBJECT_COUNTERS,
    TRANSITIONS,
    P,
    own_label,
)
from nats_backpressure.adapters.prometheus.dropped import DROPPED
from nats_backpressure.adapters.prometheus.exposition import Histogram, Labels, joined
from nats_backpressure.adapters.prometheus.process import process_text
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.values import Action, EventType

WORK, PAUSE = 0.001, 0.0002
"""Seconds for which a metrics page is computed in one go, and for which its thread then leaves the interpreter to the
event loop, which otherwise waits 5 ms at each of its turns."""
Text = Callable[[Callable[[], None]], Iterator[str]]
"""A part of the page, in pieces; it calls what it is given between two pieces of work."""


class Counters:
    """Every counter and histogram. The first `max_subjects` subjects have labels of their own. A series whose labels
    are known starts at 0. Everything is counted in one thread, the event loop's; another thread may read it. Decisions
    are counted elsewhere, see DecisionTally, which calls under a lock of its own."""

    def __init__(self, max_subjects: int) -> None:
        self.max_subjects = max_subjects
        self._gauges: Text = lambda pause: iter(())
        self._labels, self._lock = dict[str, str](), Lock()
        """Subjects with labels of their own, with the text of the label."""
        self._streams = dict[str, str]()
        """Labels of streams with series of their own, with the name of the stream."""
        self._shared = False
        """Whether a subject has the label `_other`."""
        self._counters = {
            name: CounterLines(f"{P}{name}_total", text, names) for name, (text, names) in COUNTERS.items()
        }
        self._decided, self._observed, self._lag = (
            Histogram(P + name, text, buckets) for name, (text, buckets) in HISTOGRAMS.items()
        )
        self._prepare: Callable[[], None] = lambda: None
        self._scraping = Lock()
        self._zero("dropped", *((what,) for what in DROPPED))
        self._zero("api_requests", *product(OPS, OUTCOMES))
        self._zero("connection_rebuilds", *((name,) for name in CONNECTIONS))
        self._zero("reloads", *((outcome,) for outcome in RELOADS))

    def expose(self, gauges: Text, prepare: Callable[[], None] = lambda: None) -> None:
        """Put the gauges on the page, above everything that is counted here. `prepare` is called before each page, in
        the thread of the scrape: it counts what was counted elsewhere."""
        self._gauges, self._prepare = gauges, prepare

    def page(self) -> list[bytes]:
        """The metrics page in pieces of some 50 KiB: joined, many of them would hold the interpreter."""
        with self._scraping:
            self._prepare()
            return [piece.encode() for piece in self._pieces()]

    def _pieces(self) -> Iterator[str]:
        pause = _Pauses()
        yield from self._gauges(pause)
        for counter in self._counters.values():
            yield counter.header
            for piece in joined(counter.texts()):
                yield piece
                pause()
        yield self._decided.text() + self._observed.text() + self._lag.text()
        yield from process_text()

    def label(self, subject: str) -> str:
        """The subject itself, escaped, for the first `max_subjects`, `_other` for the rest. Two threads call it."""
        if (known := self._labels.get(subject)) is not None:
            return known
        with self._lock:
            own = subject in self._labels or len(self._labels) < self.max_subjects
            label = own_label(subject) if own else OTHER
            if label != OTHER:
                self._labels[subject] = label
            if label != OTHER or not self._shared:
                self._start_series(label)
                self._shared = label == OTHER
            return label

    def give_back(self, subjects: Container[str], streams: Container[str]) -> None:
        """Drop the labels and series of all others, so that new ones find room. What is counted under `_other`
        stays."""
        for label, stream in tuple(self._streams.items()):
            if stream not in streams and stream != ALL_STREAMS:
                del self._streams[label]
                self._counters["readings_heard"].drop(label)
        with self._lock:
            gone = {label for subject, label in self._labels.items() if subject not in subjects}
            self._labels = {subject: label for subject, label in self._labels.items() if label not in gone}
        for name, label in product(SUBJECT_COUNTERS, gone):
            self._counters[name].drop(label)

    def dry_run(self, label: str) -> None:
        """Start the series of what policies with mode `observe` would have returned for a subject."""
        self._zero("would", *product((label,), ROLES, Action))

    def _start_series(self, label: str) -> None:
        self._zero("events", *product((label,), EventType))
        self._zero("recovery", (label,))
        self._zero("decisions", *product((label,), ROLES, Action))
        self._zero("transitions", *((label, before, after) for before, after in TRANSITIONS))

    def _zero(self, name: str, *series: Labels) -> None:
        for labels in series:
            self._counters[name].add(labels, 0)

    def _add(self, name: str, labels: Labels, n: int = 1) -> None:
        self._counters[name].add(labels, n)

    def event(self, subject: str, type: str) -> None:
        label = self.label(subject)
        self._add("events", (label, type))
        if type == "recovery":
            self._add("recovery", (label,))

    def transition(self, subject: str, before: str, after: str) -> None:
        self._add("transitions", (self.label(subject), before, after))

    def decisions(self, subject: str, role: str, action: str, would: str | None, n: int) -> None:
        """Count `n` decisions at once."""
        label = self.label(subject)
        self._add("decisions", (label, role, action), n)
        if would is not None:
            self._add("would", (label, role, would), n)

    def durations(self, n: int, seconds: float) -> None:
        """Count `n` decisions that took `seconds` together, each with their mean."""
        self._decided.observe(seconds / n, n)

    def dropped(self, what: str, n: int = 1) -> None:
        self._add("dropped", (what,), n)

    def api_request(self, op: str, outcome: str, seconds: float) -> None:
        self._add("api_requests", (op, outcome))

    def rebuilt(self, connection: str) -> None:
        self._add("connection_rebuilds", (connection,))

    def received(self, stream: str) -> None:
        label = own_label(stream)
        if label in self._streams or len(self._streams) < self.max_subjects:
            self._streams[label] = stream
        self._add("readings_heard", (label if label in self._streams else OTHER,))

    def reloaded(self, outcome: str) -> None:
        self._add("reloads", (outcome,))

    def lagged(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def observed(self, seconds: float) -> None:
        self._observed.observe(seconds)


class _Pauses:
    """Sleeps for PAUSE when WORK seconds have passed since the last time."""

    def __init__(self) -> None:
        self._worked_since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._worked_since >= WORK:
            time.sleep(PAUSE)
            self._worked_since = time.perf_counter()
