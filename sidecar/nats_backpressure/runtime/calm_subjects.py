"""CalmSubjects: the subjects that time alone does not change for a while, nor readings that repeat the last ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.next_record import is_quiescent
from nats_backpressure.core.subject.repeated_readings import is_at_rest, with_repeated_readings
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

    def repeat(
        self, state: SubjectState, readings: Sequence[tuple[Reading, Reading]], now: Now, newest_read_at: float
    ) -> SubjectState | None:
        """The state after readings that say the same as the ones before them, if those move nothing but the proof of
        the members; None where they must be fed as any input."""
        calm = self._subjects.get(state.subject)
        if (calm is None or calm.resting is not state) and not is_at_rest(state):
            return None
        after = with_repeated_readings(state, readings, now, newest_read_at, self._stale_after)
        if after is not None:
            calm = self._subjects.setdefault(state.subject, _Calm())
            calm.calm = after if calm.calm is state else calm.calm
            calm.resting = after
        return after
