"""Which watched subjects a question is about, and what each of them says right now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import Struct

from nats_backpressure.core.admission import binary
from nats_backpressure.core.model import Admission, Member
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy, in_force
from nats_backpressure.protocol.opening import holds_for
from nats_backpressure.protocol.patterns import PatternIndex
from nats_backpressure.protocol.subjects import is_literal
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, Freshness, Status
from nats_backpressure.queries.subject_view import SubjectView, bounds, proved, subject_view, truth
from nats_backpressure.runtime.view import ServiceView

STRICTNESS = {Action.CONTINUE: 0, Action.THROTTLE: 1, Action.REJECT: 2}
OVERRIDE = "override"
STEP = 0.1
"""Seconds after which a share that opens is another one."""


class SubjectAnswer(Struct, frozen=True):
    """One watched subject as it answers, ready to be ranked."""

    view: SubjectView
    limits: Limits
    policy: Policy
    """Of the member that speaks, or of the subject itself."""
    status: Status
    freshness: Freshness
    stale_reason: str | None
    verdict: Admission
    reasons: tuple[str, ...]
    changes: float
    """Monotonic time at which age alone makes it another answer."""

    @property
    def state(self) -> SubjectState:
        return self.view.state

    @property
    def member(self) -> Member | None:
        """The worst: it speaks for the subject."""
        return self.view.worst_member

    @property
    def pressure(self) -> float:
        return self.view.worst_member.pressure if self.view.worst_member else 0.0

    def rank(self, verdict: Admission) -> tuple[int, float, int, float, bool]:
        """How strict this answer is: the strictest action decides (of two shares the smaller), then status, then
        pressure; enforcing before observing."""
        enforced = self.policy.mode == "enforce"
        return STRICTNESS[verdict.action], -verdict.admit_ratio, self.status, self.pressure, enforced


class SubjectLookup:
    """Finds in the book; keeps what is worked out from a state for as long as the state is the same."""

    def __init__(self, book: ServiceView) -> None:
        self._book = book
        self._digests: dict[str, SubjectView] = {}
        self._patterns: Sequence[str] = ()
        self._index: PatternIndex[str] = PatternIndex()

    def find(self, subject: str, now: Now) -> list[SubjectAnswer]:
        """Every watched subject the question is about: itself, then by name. A pattern is about itself alone."""
        states = self._book.subjects
        names = [subject] if subject in states else []
        if self._book.wildcards and is_literal(subject):
            names += sorted(self._covering(subject))
        return [self.finding(states[name], now) for name in names if name in states]

    def finding(self, state: SubjectState, now: Now) -> SubjectAnswer:
        found = self._digest(state)
        record, member = state.record, found.worst_member
        policy = member.policy if member else state.policy
        limits = bounds(state, self._book)
        fresh, why = truth(found, limits, now)
        holds = holds_for(policy.on_unknown, policy.hold_seconds, limits.stale_after, limits.interval)
        opens = proved(found, limits, now) + holds
        last = record.admission if record else Admission()
        status = record.status if record and fresh is not Freshness.UNKNOWN else Status.UNKNOWN
        verdict = binary.current_admission(policy, status, fresh, last, now.mono - opens, state.shedding)
        override = in_force(policy, now)
        verdict = binary.with_override(verdict, override, policy)
        # The stored ones follow with the next write; an override acts, and is named, from its first moment to its last.
        reasons = record.reasons if record and status is not Status.UNKNOWN else ()
        reasons = (*(reason for reason in reasons if reason != OVERRIDE), *([OVERRIDE] if override else []))
        changes = math.inf
        if verdict.action is not Action.CONTINUE and override is None:
            changes = max(opens, now.mono + STEP)
        return SubjectAnswer(found, limits, policy, status, fresh, why, verdict, reasons, changes)

    def _digest(self, state: SubjectState) -> SubjectView:
        found = self._digests.get(state.subject)
        if found is None or found.state is not state:
            if len(self._digests) > 2 * len(self._book.subjects):
                self._digests.clear()  # of subjects that went
            found = self._digests[state.subject] = subject_view(state)
        return found

    def _covering(self, subject: str) -> Iterator[str]:
        """The watched patterns that cover a literal subject."""
        patterns = self._book.wildcards
        if patterns is not self._patterns:
            self._patterns, self._index = patterns, PatternIndex((pattern, pattern) for pattern in patterns)
        return self._index.covering(subject)
