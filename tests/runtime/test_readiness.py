"""What makes the process ready."""

from __future__ import annotations

import pytest

from nats_backpressure.config.settings import Http, Settings
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.runtime.readiness import READY_TIMEOUT, ReadinessCheck
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock


def check(clock: FakeClock, *, needs_nats: bool, connected: bool = True) -> tuple[ReadinessCheck, SubjectRegistry]:
    settings = Settings(http=Http(ready_requires_nats=needs_nats))
    registry = SubjectRegistry(settings, clock, ActivePolicies((), Guard(), False), "w", lambda effects: None)
    return ReadinessCheck(registry, clock, lambda: connected), registry


@pytest.mark.parametrize("needs_nats", [True, False])
def test_without_readings_only_a_process_that_needs_them_is_not_ready(needs_nats: bool) -> None:
    clock = FakeClock()
    ready, registry = check(clock, needs_nats=needs_nats, connected=False)
    assert (ready().ready, ready().nats, ready().last_sweep_age_ms) == (not needs_nats, "connecting", None)
    registry.observing, registry.streams.newest_reading = True, clock.now().mono
    clock.advance(READY_TIMEOUT - 1)
    assert (ready().ready, ready().last_sweep_age_ms) == (True, round(1000 * (READY_TIMEOUT - 1)))
    clock.advance(1)
    assert ready().ready is not needs_nats


def test_it_observes_once_requests_are_answered_too() -> None:
    ready, registry = check(FakeClock(), needs_nats=False)
    registry.observing = True
    assert not ready().observing
    ready.serving = True
    assert ready().observing and ready().nats == "connected"
