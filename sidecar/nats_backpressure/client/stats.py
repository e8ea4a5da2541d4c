"""The client's counters, and a logger that reports each problem once until it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

log = logging.getLogger("nats_backpressure.client")
OFF = "no backpressure client: every request is admitted"
"""Logged where there may be none."""

MAX_REPORTED = 100
"""Things that are remembered of one kind of problem; a further one replaces the oldest."""
REPORT_EVERY = 60.0
"""Seconds between two lines of a kind that has as many: others make them up, with the subjects and paths they send."""


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
    bad_subject: int = 0
    """Requests whose subject is no plain one (`*`, `>`, blanks, an empty token): decided by the strictest state that it
    could mean."""
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
    """States dropped because the client has the most it keeps: their subjects are admitted."""
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

    def counts(self) -> dict[str, int]:
        """All counters by name, for a metrics library."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "on_count"}

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
        self._reported: dict[str, dict[str, None]] = {}
        """What was logged, by kind, the oldest first."""
        self._next: dict[str, float] = {}
        """Monotonic time of the next line of a kind that has MAX_REPORTED."""

    def warn(self, kind: str, about: str, text: str, *, exc_info: bool = False) -> None:
        """Log a warning, unless this kind about this thing was logged and is not over."""
        self._report(logging.WARNING, kind, about, text, exc_info)

    def info(self, kind: str, about: str, text: str) -> None:
        """The same for what need not be a problem."""
        self._report(logging.INFO, kind, about, text, False)

    def resolve(self, kind: str, about: str, text: str) -> None:
        """Log that a problem is over, if it was logged."""
        if about in (reported := self._reported.get(kind, {})):
            del reported[about]
            log.info("%s", text)

    def _report(self, level: int, kind: str, about: str, text: str, exc_info: bool) -> None:
        reported = self._reported.setdefault(kind, {})
        if about in reported:
            reported[about] = reported.pop(about)  # the newest: it goes on
            return
        if len(reported) >= MAX_REPORTED:
            if (now := time.monotonic()) < self._next.get(kind, 0.0):
                return
            self._next[kind] = now + REPORT_EVERY
            del reported[next(iter(reported))]
        reported[about] = None
        log.log(level, "%s", text, exc_info=exc_info)
