"""What is kept for one state, and for one subject asked about, so that the next request costs a look and a count."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.client.admission import OPEN, LocalDecision, Shedder
from nats_backpressure.client.values import StateValue

NEVER = -math.inf


class Admission(Struct, frozen=True):
    """What to do with one request; true where it is admitted."""

    admitted: bool
    status: str
    """`inactive`, `warning`, `active` or `unknown`."""
    action: str
    """`continue`, `throttle` or `reject`."""
    retry_after_seconds: float
    """For one that is refused, without jitter; else 0."""
    admit_ratio: float
    freshness: str
    """`known`, `stale` or `unknown`."""
    would: str | None
    """Under `mode: observe`, what enforcement would say."""

    def __bool__(self) -> bool:
        return self.admitted


class HeldState:
    """One state. Shedding is counted here, with the watched subject, whatever literals are asked about."""

    __slots__ = ("admitted", "known", "offered", "orphan", "proof", "shedder", "subject", "written")

    def __init__(self, subject: str, known: StateValue) -> None:
        self.subject, self.known = subject, known
        self.proof = NEVER
        """When it was last known to hold, by the value itself."""
        self.written = NEVER
        self.orphan = False
        """Gone without a deletion (the bucket was made anew): heartbeats prove nothing about it any more."""
        self.shedder = Shedder()
        self.offered = self.admitted = 0


class Gate:
    """One subject asked about, with its answers ready for as long as nothing changes."""

    __slots__ = (
        "admitted", "decides", "entries", "keys_version", "no", "offered", "plain", "ruling", "subject", "until",
        "version", "yes",
    )  # fmt: skip

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.entries: tuple[HeldState, ...] = ()
        """The states it stands under."""
        self.version = self.keys_version = -1
        self.offered = self.admitted = 0
        self.settle(OPEN, None, NEVER)

    def settle(self, ruling: LocalDecision, decides: HeldState | None, until: float) -> None:
        """`decides` is the state whose ruling it is; None where nobody watches."""
        self.ruling, self.decides, self.until = ruling, decides, until
        told = (ruling.ratio, ruling.freshness, ruling.would)
        let_in = "throttle" if ruling.action == "throttle" else "continue"
        self.yes = Admission(True, ruling.status, let_in, 0.0, *told)
        self.no = Admission(False, ruling.status, ruling.action, ruling.retry_after, *told)
        self.plain = decides is not None and ruling.action == "continue" and ruling.would in (None, "continue")
        """Whether every request gets `yes` and nothing else is to be counted."""

    def hand_over(self) -> None:
        """What was asked and let in goes to the states: the sidecar knows watched subjects, not what they cover."""
        for entry in self.entries:
            entry.offered += self.offered
            entry.admitted += self.admitted
        self.offered = self.admitted = 0
