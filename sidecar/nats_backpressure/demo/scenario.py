"""The numbers of one demo run, the names its processes share, and the line in which each reports."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal

from msgspec import Struct

STREAM, CONSUMER, SUBJECT = "ROUTER", "router-decide", "beamline.router.v1.decide"
PREFIX = "backpressure.v1"
PATH = "/decide"
SENT_AT = "x-sent-at"
"""Header of request and message: monotonic seconds at which the request was sent; all processes share one machine."""
REPORT_INTERVAL = 0.25
"""Seconds between two reports of a process."""

Mode = Literal["none", "polling", "binary", "adaptive"]


class Scenario(Struct, frozen=True, kw_only=True):
    """One run: how much work the router can do, and how much is offered."""

    mode: Mode = "binary"
    overload: float = 10.0
    """Requests offered, in units of the router's capacity, while the overload lasts."""
    seconds: float = 30.0
    """How long the overload lasts, without the calm before and after it."""
    workers: int = 10
    """Messages the router works on at a time."""
    seconds_per_message: float = 0.1
    deadline: float = 5.0
    """Seconds from request to ack within which the result is still useful."""
    target_drain: float = 2.0
    """Seconds to drain the backlog at which the subject is overloaded."""
    calm: float = 3.0
    """Seconds of calm before and after the overload."""
    calm_load: float = 0.5
    """Share of the capacity that is offered before and after the overload."""
    nak: bool = False
    """Whether the router NAKs messages for which it has no free worker, instead of asking before it pulls."""
    max_deliver: int = -1
    ack_wait: float = 30.0
    """Seconds after which the server delivers an unacknowledged message again."""
    pull_gate: bool = True
    """Whether the router asks before it pulls, in the modes that have backpressure."""
    policy: dict[str, Any] | None = None
    """The sidecar's policy for the subject; None for marks in proportion to this router's capacity."""
    settle: float = 0.0
    """Most seconds to wait for the return to inactive after the load has ended."""
    crash_at: float | None = None
    """Seconds into the run at which the router is killed; it is started again `restart_after` seconds later."""
    restart_after: float = 2.0

    @property
    def capacity(self) -> float:
        """Messages a second."""
        return self.workers / self.seconds_per_message

    def offered(self, at: float) -> float:
        """Requests a second at `at` seconds into the run."""
        over = self.calm <= at < self.calm + self.seconds
        return self.capacity * (self.overload if over else self.calm_load)


def print_report(**facts: Any) -> None:
    """Print one line of facts for the process that started this one."""
    sys.stdout.write(json.dumps({"at": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()
