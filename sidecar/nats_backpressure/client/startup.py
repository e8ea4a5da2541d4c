"""Startup: keeps what is only not there yet from being reported as a problem. Pure: times are arguments."""

from __future__ import annotations

QUIET_SECONDS = 5.0
"""For which nothing is reported: a gateway starts beside its NATS connection, and often beside the sidecar."""


class Startup:
    """Begins when something is missing for the first time."""

    def __init__(self) -> None:
        self._ends: float | None = None

    def is_over(self, now: float) -> bool:
        """Whether what is missing now is a problem."""
        if self._ends is None:
            self._ends = now + QUIET_SECONDS
        return now >= self._ends
