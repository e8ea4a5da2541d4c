"""The stage: the names everybody on it knows, the numbers of one run, and the line in which a program reports."""

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
"""Header, and field of the message: monotonic seconds at which the caller sent; all programs share one machine."""
REPORT_EVERY = 0.25
"""Seconds between two lines of a program."""

Mode = Literal["none", "polling", "binary", "adaptive"]


class Scenario(Struct, frozen=True, kw_only=True):
    """One run: how much work the router can do, and how much comes."""

    mode: Mode = "binary"
    overload: float = 10.0
    """Requests offered, in units of the router's capacity, while the overload lasts."""
    seconds: float = 30.0
    """How long the overload lasts; a calm before and after it comes on top."""
    hands: int = 10
    seconds_each: float = 0.1
    deadline: float = 5.0
    """Seconds from the caller's sending to the router's ack within which an answer is of use."""
    target_drain: float = 2.0
    calm: float = 3.0
    share_in_calm: float = 0.5
    """Of the capacity, offered before and after the overload."""
    nak: bool = False
    """Whether the router hands back what it has no hand for, instead of asking before it pulls."""
    max_deliver: int = -1
    ack_wait: float = 30.0
    """Seconds after which the server delivers again what a router took and did not acknowledge."""
    asks: bool = True
    """Whether the router asks before it pulls, in the modes in which there is somebody to ask."""
    policy: dict[str, Any] | None = None
    """The sidecar's policy for the subject; None is one in proportion to what this router can do."""
    settle: float = 0.0
    """Seconds after the callers are done for which the return to inactive is waited for, at most."""
    crash_at: float | None = None
    """Seconds into the run at which the router is killed; it is started anew `crash_for` later."""
    crash_for: float = 2.0

    @property
    def capacity(self) -> float:
        """Messages a second."""
        return self.hands / self.seconds_each

    def offered(self, at: float) -> float:
        """Requests a second at `at` seconds into the run."""
        over = self.calm <= at < self.calm + self.seconds
        return self.capacity * (self.overload if over else self.share_in_calm)


def report(**facts: Any) -> None:
    """One line about this program, for whoever started it."""
    sys.stdout.write(json.dumps({"at": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()
