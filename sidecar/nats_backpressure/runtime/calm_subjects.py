"""CalmSubjects: the subjects that time alone does not change for a while, nor readings that repeat the last ones."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.core.subject.next_record import is_quiescent
from nats_backpressure.core.subject.repeated_readings import is_at_rest
from nats_backpressure.core.subject.restart_facts import ACCOUNT_EVERY, CARRY_EVERY, carried_write_due
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now


class _Calm(Struct):
    """What was found out about one subject. It holds as long as the state is the same object."""

    resting: SubjectState | None = None
    """The state that was found at rest: readings that repeat the last ones move nothing."""
    calm: SubjectState | None = None
    """The state of which time alone changes nothing before `until`, which is monotonic."""
    until: float = 0.0
    facts_due: float = 0.0
    """The monotonic time from which on the carried facts of `calm` may be worth a write."""


class CalmSubjects:
    """Saves a step for each subject that it would not change. Bounded by the subjects that are watched: `forget`."""

    def __init__(self, stale_after: float) -> None:
        """`stale_after`: seconds without a proof after which time may change a subject."""
        self._stale_after = stale_after
        self._subjects: dict[str, _Calm] = {}

    def forget(self, subject: str) -> None:
        self._subjects.pop(subject, None)

    def is_calm(self, state: SubjectState, now: float) -> bool:
        """Whether it is known that time alone changes nothing of this state up to now."""
        calm = self._subjects.get(state.subject)
        return calm is not None and calm.calm is state and now < calm.until

    def check(self, state: SubjectState, newest_proof: float | None, now: Now) -> bool:
        """Find out whether time alone changes nothing of this state now, and until when."""
        calm = self._subjects.setdefault(state.subject, _Calm())
        known = calm.calm is state
        compared = known and now.mono < calm.facts_due
        if newest_proof is None or now.mono - newest_proof >= self._stale_after:
            return False
        if not (known or is_quiescent(state)) or (not compared and carried_write_due(state, now)):
            return False
        # The same subtraction as in `carried_write_due`: the sum may be rounded to another moment.
        waits = (every for every in (ACCOUNT_EVERY, CARRY_EVERY) if now.mono - state.written_at < every)
        calm.calm, calm.facts_due = state, min((state.written_at + every for every in waits), default=math.inf)
        calm.until = min(newest_proof + self._stale_after, calm.facts_due)
        return True

    def is_at_rest(self, state: SubjectState) -> bool:
        """Whether readings that repeat the last ones move nothing of this state."""
        calm = self._subjects.get(state.subject)
        return (calm is not None and calm.resting is state) or is_at_rest(state)

    def repeat(self, before: SubjectState, after: SubjectState) -> None:
        """Readings were repeated: what was found out about the state before holds for the one after."""
        calm = self._subjects.setdefault(before.subject, _Calm())
        if calm.calm is before:
            calm.calm = after
        calm.resting = after
