"""The client's counters, and a logger that reports each problem once until it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("nats_backpressure.client")

MAX_REPORTED = 1000
"""Problems that are remembered; beyond, further ones are only counted."""


@dataclass(slots=True)
class Stats:
    """Counters since the start. `on_count(name, subject)`, if set, is called for each count too, for any metrics
    library; it must be quick, and is not called any more after it raised."""

    admitted: int = 0
    """Requests that `admit` let through."""
    shed: int = 0
    """Requests that `admit` refused."""
    would: int = 0
    """Requests admitted under `mode: observe` that enforcement would throttle or reject."""
    unwatched: int = 0
    """Requests and questions about a subject that nobody watches or nothing is known of yet: admitted."""
    no_subject: int = 0
    """Requests and questions without a usable subject: admitted."""
    bad_priority: int = 0
    """Requests with an unknown priority: treated as normal."""
    asked: int = 0
    """Requests sent to the sidecar."""
    reused: int = 0
    """Questions answered from an answer that is still valid, or by the same request under way."""
    failed_open: int = 0
    """Questions without an answer: continue."""
    outages: int = 0
    """Times the sidecar stopped answering."""
    malformed_reply: int = 0
    """Replies of the sidecar that cannot be decoded: continue."""
    malformed_state: int = 0
    """States that cannot be decoded: their subjects are admitted."""
    malformed_heartbeat: int = 0
    """Heartbeats that cannot be decoded: ignored."""
    keys_refused: int = 0
    """States left out because the client has the most it keeps."""
    watch_lost: int = 0
    """Times the watch was lost, or could not start."""
    snapshots: int = 0
    """Times the watch read every state: at its start and after each loss."""
    events: int = 0
    """Events passed to the function for events."""
    events_dropped: int = 0
    """Events seen before, passed, or malformed."""
    pulled: int = 0
    """Messages fetched through a pull gate."""
    held_back: int = 0
    """Times a pull gate was granted nothing and waited."""
    exempt: int = 0
    """Requests on exempt routes."""
    unknown_route: int = 0
    """Requests on routes without a subject: admitted."""
    route_error: int = 0
    """Times the gateway's own function for a subject or a priority raised: admitted."""
    reports: int = 0
    """Reports of offered and admitted requests that were published."""
    on_count: Callable[[str, str], None] | None = field(default=None, repr=False)

    def count(self, name: str, subject: str = "") -> None:
        setattr(self, name, getattr(self, name) + 1)
        if self.on_count is not None:
            self.notify(name, subject)

    def notify(self, name: str, subject: str) -> None:
        """Call `on_count`; counting must never cost a request."""
        assert self.on_count is not None
        try:
            self.on_count(name, subject)
        except Exception:
            self.on_count = None
            log.exception("on_count raised and is not called any more")


class OnceLogger:
    """Logs a problem once, until it is over."""

    def __init__(self) -> None:
        self._reported: set[tuple[str, str]] = set()

    def warn(self, kind: str, about: str, text: str) -> None:
        """Log a warning, unless this kind about this thing was logged and is not over."""
        if (kind, about) in self._reported or len(self._reported) >= MAX_REPORTED:
            return
        self._reported.add((kind, about))
        log.warning("%s", text)

    def resolve(self, kind: str, about: str, text: str) -> None:
        """Log that a problem is over, if it was logged."""
        if (kind, about) in self._reported:
            self._reported.discard((kind, about))
            log.info("%s", text)
