"""WatchedSummary: logs in one line what is watched and what is left out, when it was read first and when it changes."""

from __future__ import annotations

import math
from collections import Counter

import structlog
from msgspec import Struct
from msgspec.structs import asdict

from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

EVERY = 60.0
"""Seconds between two lines at least."""


class WatchedSummary:
    """Of the registry; `report` is called often."""

    def __init__(self, registry: SubjectRegistry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock
        self._counted_at = -math.inf
        self._last: WatchedCounts | None = None

    def report(self) -> None:
        """Log what is watched if that is another number than the last one, or the first."""
        now = self._clock.now().mono
        if not self._registry.observing or now - self._counted_at < EVERY:
            return
        self._counted_at = now
        counts = watched_counts(self._registry)
        if counts != self._last:
            self._last = counts
            log.info("watching", **asdict(counts))


class WatchedCounts(Struct, frozen=True):
    """How much is watched, and how many consumers are left out, by the reason."""

    streams: int
    consumers: int
    subjects: int
    left_out: dict[str, int]


def watched_counts(registry: SubjectRegistry) -> WatchedCounts:
    """May be called on another thread."""
    streams = [stream for stream in tuple(registry.streams.values()) if stream.watched]
    counted = [tuple(stream.under.values()) for stream in streams]
    left_out = Counter[str]()
    for stream in streams:
        left_out.update(stream.left_out)
    subjects = {subject for under in counted for subjects in under for subject in subjects}
    return WatchedCounts(len(streams), sum(map(len, counted)), len(subjects), dict(sorted(left_out.items())))
