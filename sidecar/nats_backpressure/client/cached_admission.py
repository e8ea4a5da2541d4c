"""What makes `admit` cheap: CachedAdmission keeps the ready answers for a subject; WatchedState sheds and counts."""

from __future__ import annotations

import math

from nats_backpressure.client.admission import OPEN, Admission, LocalDecision
from nats_backpressure.client.held_rate import HeldRate
from nats_backpressure.client.shedder import Shedder
from nats_backpressure.protocol.messages import State
from nats_backpressure.protocol.patterns import literal_problem
from nats_backpressure.protocol.values import ActionName, Priority

NEVER = -math.inf


class WatchedState:
    """One state of the bucket. It sheds and counts for every literal subject that it governs."""

    __slots__ = ("admitted", "held", "offered", "proof", "shedder", "subject", "value", "written")

    def __init__(self, subject: str, value: State) -> None:
        self.subject, self.value = subject, value
        self.proof = NEVER
        """When it was last proved to hold, by the value itself."""
        self.written = NEVER
        self.shedder, self.held = Shedder(), HeldRate()
        self.offered = self.admitted = 0
        """Requests since the last report."""

    def admit(self, ratio: float, priority: Priority, now: float) -> bool:
        """Whether one request goes through where a share is admitted."""
        if ratio <= 0:
            return False
        return self.held.admit(ratio, self.shedder.admit(ratio, priority), now, priority)


class CachedAdmission:
    """One requested subject, with its two answers ready until a state changes or ages."""

    __slots__ = (
        "admitted", "always", "deciding", "decision", "is_plain", "keys_version", "no", "offered", "states", "subject",
        "until", "version", "yes",
    )  # fmt: skip

    def __init__(self, subject: str) -> None:
        self.subject, self.is_plain = subject, literal_problem(subject) is None
        self.states: tuple[WatchedState, ...] = ()
        """The states that govern it."""
        self.version = self.keys_version = -1
        self.offered = self.admitted = 0
        self.set(OPEN, None, NEVER)

    def set(self, decision: LocalDecision, deciding: WatchedState | None, until: float) -> None:
        """`deciding` is the state that the decision comes from; None if nobody watches the subject."""
        self.decision, self.deciding, self.until = decision, deciding, until
        rest = (decision.ratio, decision.freshness, decision.would, decision.override)
        admitted_as: ActionName = "throttle" if decision.action == "throttle" else "continue"
        self.yes = Admission(True, decision.status, admitted_as, 0.0, *rest)
        self.no = Admission(False, decision.status, decision.action, decision.retry_after, *rest)
        self.always = deciding is not None and decision.action == "continue" and decision.would in (None, "continue")
        """Whether every request gets `yes` and nothing else is counted."""

    def flush_counts(self) -> None:
        """Add the requests to the states: the sidecar knows watched subjects, not the literals they cover."""
        for state in self.states:
            state.offered += self.offered
            state.admitted += self.admitted
        self.offered = self.admitted = 0
