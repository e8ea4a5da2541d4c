"""The log says when statuses become stale and unknown for want of readings, at that time, and when that is over."""

from __future__ import annotations

from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.runtime.reading_gap import ReadingGap
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock


def test_each_step_of_a_gap_is_one_line() -> None:
    clock, settings = FakeClock(), Settings()
    registry = SubjectRegistry(settings, clock, ActivePolicies((), Guard(), False), "w", lambda effects: None)
    gap = ReadingGap(registry, clock)
    with capture_logs() as lines:
        for second in range(100):
            if second in (5, 50, 51):
                registry.observing, registry.streams.newest_reading = True, clock.now().mono
            gap.report()
            clock.advance(1)
    steps = [(line["event"], line.get("statuses"), line["seconds"]) for line in lines]
    observe = settings.observe
    stopped = [
        ("reading.stopped", "stale", observe.stale_after_seconds),
        ("reading.stopped", "unknown", observe.unknown_after_seconds),
    ]
    assert steps == [*stopped, ("reading.resumed", None, 44.0), *stopped]
