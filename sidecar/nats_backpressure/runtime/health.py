"""Health: what the metrics show of the process as a whole, computed at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.readiness import Readiness
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.watched_summary import watched_counts


class Health(Struct, frozen=True):
    """How one replica is at one moment."""

    connected: Mapping[str, bool] = {}
    """By the name of the connection to NATS."""
    observing: bool = False
    """Whether every stream was read or tried, and requests are answered."""
    reading_age: float | None = None
    """Seconds since the newest reading of any stream; None before the first round is complete."""
    interval: float = 0.0
    """Seconds between two readings of a subject, the longest as planned now."""
    heartbeat_age: float = 0.0
    """Seconds since the newest heartbeat of any replica that proves something; since the start if there was none."""
    write_delay: float = 0.0
    """Seconds since the oldest load or write of a state that is under way began; 0 if there is none."""
    streams: int = 0
    consumers: int = 0
    """How many are watched."""
    left_out: Mapping[str, int] = {}
    """How many consumers are not watched, by the reason."""
    policies_refused: int = 0
    """Keys of the policy bucket whose value is refused."""
    file_is_good: bool = True
    """Whether the settings file was good when it was last read."""
    file_taken_at: float = 0.0
    """Unix seconds at which the policies in force were read from it."""


class HealthCheck:
    """Computes the health; it may be asked on another thread."""

    def __init__(
        self, service: Service, ready: Callable[[], Readiness], connected: Mapping[str, Callable[[], bool]]
    ) -> None:
        self._service, self._ready, self._connected = service, ready, connected

    def __call__(self, now: Now) -> Health:
        service, registry = self._service, self._service.registry
        newest = registry.newest_read_at
        counts = watched_counts(registry)
        return Health(
            connected={name: connected() for name, connected in self._connected.items()},
            observing=self._ready().observing,
            reading_age=None if newest is None else max(0.0, now.mono - newest),
            interval=registry.longest_interval(),
            heartbeat_age=service.heartbeat_age(now),
            write_delay=service.write_delay(now),
            streams=counts.streams,
            consumers=counts.consumers,
            left_out=counts.left_out,
            policies_refused=registry.policies.refused,
            file_is_good=service.updates.file_is_good,
            file_taken_at=service.updates.file_taken_at,
        )
