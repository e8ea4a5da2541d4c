"""SteppingClock: a FakeClock on which work takes time, so that long loops pause."""

from __future__ import annotations

from nats_backpressure.protocol.timestamps import Now
from tests.fakes.clock import FakeClock


class SteppingClock(FakeClock):
    """Each look at it takes a millisecond."""

    def now(self) -> Now:
        self.advance(0.001)
        return super().now()
