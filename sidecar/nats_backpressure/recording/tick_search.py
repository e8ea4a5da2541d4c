"""Searches a time gap in a recording for the first tick that changes a state because of time alone.

A step is a pure function of time, so a gap is searched, not walked: years without a line cost a few dozen steps.
"""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.subject_registry import TICK, SubjectRegistry


class TimeGap(Struct, frozen=True):
    """The ticks after `since` (monotonic seconds) up to a later time, counted from 1."""

    registry: SubjectRegistry
    since: float
    to: Now

    def at(self, tick: int) -> Now:
        mono = self.since + tick * TICK
        return Now(mono, self.to.wall - (self.to.mono - mono))

    def uniform_ticks(self, most: int) -> int:
        """Number of ticks, from 1 to `most`, during which the freshness of every member stays the same."""
        for subject, state in self.registry.subjects.items():
            limits = self.registry.limits(subject)
            for member in state.members.values():
                for after in (limits.stale_after, limits.unknown_after):
                    seconds = (member.proof or 0.0) + after - self.since
                    if seconds > 0:
                        most = min(most, max(1, math.ceil(seconds / TICK) - 1))
        return most

    def first_change(self, most: int) -> int:
        """The first of `most` uniform ticks that changes anything; 0 if none does. What one tick changes, every later
        one would change too."""
        if not self._changes(most):
            return 0
        unchanged, changing, probe = 0, most, 1
        while changing - unchanged > 1:
            if self._changes(probe):
                changing = probe
            else:
                unchanged = probe
            probe = (unchanged + changing) // 2
        return changing

    def _changes(self, tick: int) -> bool:
        at = self.at(tick)
        return not all(self.registry.is_unchanged_by_time(subject, at) for subject in self.registry.subjects)
