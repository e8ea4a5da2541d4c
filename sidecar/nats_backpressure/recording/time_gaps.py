"""Time that passes between two lines of a recording: which of the service's looks at it have to be taken again.

A step is a pure function of time, so a gap is searched and not walked: years of silence cost a few dozen steps.
"""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.subjects import TICK, SubjectRegistry


class TimeGaps(Struct, frozen=True):
    """The looks after the one at `since` (monotonic), on the way to a later moment; they are counted from 1."""

    registry: SubjectRegistry
    since: float
    to: Now

    def at(self, tick: int) -> Now:
        mono = self.since + tick * TICK
        return Now(mono, self.to.wall - (self.to.mono - mono))

    def alike(self, most: int) -> int:
        """For how many looks, of so many at most, everything stays as fresh as it is (1 at least)."""
        for subject, state in self.registry.subjects.items():
            limits = self.registry.limits(subject)
            for member in state.members.values():
                for after in (limits.stale_after, limits.unknown_after):
                    edge = (member.proof or 0.0) + after - self.since
                    if edge > 0:
                        most = min(most, max(1, math.ceil(edge / TICK) - 1))
        return most

    def due(self, most: int) -> int:
        """The first look that changes anything, of so many that are alike: what one changes, a later one in its place
        would change too. 0 if none does."""
        if not self._changes(most):
            return 0
        calm, changing, probe = 0, most, 1
        while changing - calm > 1:
            if self._changes(probe):
                changing = probe
            else:
                calm = probe
            probe = (calm + changing) // 2
        return changing

    def _changes(self, tick: int) -> bool:
        at = self.at(tick)
        return not all(self.registry.stays(subject, at) for subject in self.registry.subjects)
