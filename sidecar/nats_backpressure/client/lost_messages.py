"""LostMessages: what was returned with a delay or dropped, and when that comes back, as questions tell it. Pure."""

from __future__ import annotations

import math
from typing import Any

from nats_backpressure.client.due_groups import DROPPED, SLOT, Times, as_field, grouped, not_due
from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES

SLOTS = 64
"""Of a longer delay: its slots are as long as it takes that there are no more, so that few times are remembered."""
GROUPED_FOR = 1.0
"""Seconds for which groups are only added to, and after which those of earlier questions are told again: to go through
hundreds of times with each question would hold the worker's loop for milliseconds."""


class LostMessages:
    def __init__(self) -> None:
        self._new, self._telling, self._earlier = Times(), _Grouped(), _Grouped()
        """Since the last question, in that one as long as it is not answered, and before it."""

    @property
    def untold(self) -> int:
        return self._new.total()

    def add(self, deliveries: int, now: float, delay: float | None = None) -> None:
        due_at = DROPPED if delay is None else _rounded(now, min(delay, LONGEST_DELAY_MS / 1000))
        self._new[due_at, min(deliveries, MOST_DELIVERIES)] += 1

    def fields(self, now: float) -> dict[str, Any]:
        """Of a question. What was told in one without an answer is told again, while it is not due."""
        self._telling.forget_due(now)
        self._telling.add(self._new, self._new)
        self._new = Times()
        telling = self._telling.groups(now)
        # A question that tells what is new tells the earlier ones too: who hears it knows the asker from then on.
        if not telling and not self._earlier.is_old(now):
            return {"lost": 0}
        self._earlier.forget_due(now)
        earlier = self._earlier.groups(now)
        if not telling and not earlier:
            return {"lost": 0}
        return {"lost": telling.total(), "due": as_field(telling, now), "earlier": as_field(earlier, now)}

    def answered(self) -> None:
        """The question was answered."""
        self._earlier.add(self._telling.times, self._telling.summed)
        self._telling = _Grouped()


class _Grouped:
    """Times, and the groups of them, which are made anew after GROUPED_FOR."""

    def __init__(self) -> None:
        self.times = Times()
        self.summed, self._made_at = Times(), -math.inf

    def is_old(self, now: float) -> bool:
        return now >= self._made_at + GROUPED_FOR

    def add(self, times: Times, groups: Times) -> None:
        """Times that were summed up as these groups."""
        self.times.update(times)
        self.summed.update(groups)

    def forget_due(self, now: float) -> None:
        """Also those that were dropped."""
        if self.is_old(now):
            self.times = not_due(self.times, now)
            self.summed, self._made_at = self.times.copy(), now
        else:
            self.summed = not_due(self.summed, now)

    def groups(self, now: float) -> Times:
        self.summed = grouped(self.summed, now)
        return self.summed


def _rounded(now: float, delay: float) -> float:
    """When it is over, up to the next slot, so that there are SLOTS to 2 SLOTS of each delay."""
    slot = SLOT * 2.0 ** max(0, math.floor(math.log2(max(delay, SLOT) / SLOTS / SLOT)))
    return slot * math.ceil((now + delay) / slot)
