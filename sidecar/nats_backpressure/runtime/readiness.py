"""Computes the readiness of the process: what `/readyz` answers."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from nats_backpressure import __version__
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.subject_registry import SubjectRegistry

READY_TIMEOUT = 30.0
"""Seconds without a reading after which `http.ready_requires_nats` makes the process not ready."""


class Readiness(Struct, frozen=True):
    """The body of /readyz."""

    ready: bool
    """Whether the HTTP status is 200 and not 503."""
    nats: str
    """`connected` or `connecting`."""
    observing: bool
    """Whether every stream was read, received or tried, and requests are answered."""
    streams: int
    """Watched streams."""
    reads: int
    """How many of them this replica reads itself; it receives the readings of the others from other replicas."""
    last_sweep_age_ms: int | None
    """Milliseconds since the newest reading of any stream; None before the first round is complete."""
    version: str


class ReadinessCheck:
    """Computes the readiness from the registry; it may be asked on another thread."""

    def __init__(self, registry: SubjectRegistry, clock: TimeSource, connected: Callable[[], bool]) -> None:
        self._registry, self._clock, self._connected = registry, clock, connected
        self.serving = False
        """Whether requests are answered: those who wait for readiness send requests next."""

    def __call__(self) -> Readiness:
        newest = self._registry.newest_read_at
        age = None if newest is None else self._clock.now().mono - newest
        streams = tuple(self._registry.streams)
        return Readiness(
            ready=(age is not None and age < READY_TIMEOUT) or not self._registry.settings.http.ready_requires_nats,
            nats="connected" if self._connected() else "connecting",
            observing=self._registry.observing and self.serving,
            streams=len(streams),
            reads=sum(map(self._registry.streams.reads, streams)),
            last_sweep_age_ms=None if age is None else round(1000 * age),
            version=__version__,
        )
