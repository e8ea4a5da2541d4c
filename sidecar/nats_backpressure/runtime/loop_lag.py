"""Measures how late the event loop runs what is due: high where it computes for long, or the CPU is throttled."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.runtime.ports import Clock

EVERY = 1.0
"""Seconds between two measurements."""
TIMER = 0.01
"""Seconds of the timer whose delay is measured: a short one, which the clock does not let end later than asked for."""


async def measure_loop_lag(clock: Clock, report: Callable[[float], None]) -> None:
    """Call `report` with the delay in seconds, until cancelled."""
    while True:
        await clock.sleep(EVERY)
        due_at = clock.now().mono + TIMER
        await clock.sleep(TIMER)
        report(max(0.0, clock.now().mono - due_at))
