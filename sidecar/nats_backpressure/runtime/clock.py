"""The real clock: the only place where time is read for the service."""

from __future__ import annotations

import time

from nats_backpressure.protocol.timestamps import Now


class SystemClock:
    def now(self) -> Now:
        return Now(time.monotonic(), time.time())
