"""WatchedSummary: logs in one line what is watched and what is left out, when it was read first and when it changes."""

from __future__ import annotations

import math
from collections import Counter

import structlog

from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

EVERY = 60.0
"""Seconds between two lines at least."""


class WatchedSummary:
    """Of the registry; `report` is called often."""

    def __init__(self, registry: SubjectRegistry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock
        self._counted_at, self._last = -math.inf, dict[str, object]()

    def report(self) -> None:
        """Log what is watched if that is another number than the last one, or the first."""
        now = self._clock.now().mono
        if not self._registry.observing or now - self._counted_at < EVERY:
            return
        self._counted_at = now
        counts = self._counts()
        if counts != self._last:
            self._last = counts
            log.info("watching", **counts)

    def _counts(self) -> dict[str, object]:
        streams = [stream for stream in self._registry.streams.values() if stream.watched]
        left_out = Counter[str]()
        for stream in streams:
            left_out.update(stream.left_out)
        return {
            "streams": len(streams),
            "consumers": sum(len(stream.under) for stream in streams),
            "subjects": len({subject for stream in streams for under in stream.under.values() for subject in under}),
            "left_out": dict(sorted(left_out.items())),
        }
