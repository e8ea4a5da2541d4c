"""Measures how late the event loop runs what is due: high where it computes for long, or the CPU is throttled."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.runtime.ports import Clock

EVERY = 1.0
"""Seconds between two measurements."""


async def measure_loop_lag(clock: Clock, report: Callable[[float], None]) -> None:
    """Call `report` with the delay in seconds of the newest timer, until cancelled. A timer of its own would be one
    more wake-up."""
    while True:
        await clock.sleep(EVERY)
        if (late := clock.lateness()) is not None:
            report(late)
