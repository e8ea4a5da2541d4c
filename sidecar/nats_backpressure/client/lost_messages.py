"""LostMessages: what was returned with a delay or dropped, and when that comes back, as questions tell it. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES, MOST_DUE

SLOT = 0.05
"""Seconds within which two count as due at the same time, the later one; twice as many as long as there are more times
than a question can tell."""
SLOTS = 64
"""Of a longer delay: its slots are as long as it takes that there are no more, so that few times are remembered."""

Times = Counter[tuple[float | None, int]]
"""Numbers of messages, by when their delay is over (None: dropped) and their deliveries."""


class LostMessages:
    def __init__(self) -> None:
        self._new, self._telling, self._earlier = Times(), Times(), Times()
        """Since the last question, in that one as long as it is not answered, and before it."""

    @property
    def untold(self) -> int:
        return self._new.total()

    def add(self, deliveries: int, now: float, delay: float | None = None) -> None:
        due_at = None if delay is None else _rounded(now + delay, delay)
        self._new[due_at, min(deliveries, MOST_DELIVERIES)] += 1

    def fields(self, now: float) -> dict[str, Any]:
        """Of a question. What was told in one without an answer is told again, while it is not due."""
        self._telling, self._new = _not_due(self._telling, now) + self._new, Times()
        self._earlier = _not_due(self._earlier, now)
        if not self._telling and not self._earlier:
            return {"lost": 0}
        due, earlier = due_groups(self._telling, now), due_groups(self._earlier, now)
        return {"lost": self._telling.total(), "due": due, "earlier": earlier}

    def told(self) -> None:
        """The question was answered."""
        self._earlier += self._telling
        self._telling = Times()


def due_groups(times: Times, now: float) -> list[dict[str, int]]:
    """The field `due` of a question. All deliveries that are told apart fit twice: of dropped ones, and in one slot."""
    slot = SLOT
    while len(groups := _grouped(times, slot, now)) > MOST_DUE:
        slot *= 2
    return [
        {"n": n, "deliveries": deliveries} | ({} if slots < 0 else {"delay_ms": _delay_ms(slots * slot)})
        for (slots, deliveries), n in sorted(groups.items())
    ]


def _not_due(times: Times, now: float) -> Times:
    return Times({time: n for time, n in times.items() if time[0] is not None and time[0] > now})


def _grouped(times: Times, slot: float, now: float) -> Counter[tuple[int, int]]:
    """Numbers by slots from now on and deliveries; -1 slots for dropped ones."""
    groups = Counter[tuple[int, int]]()
    for (due_at, deliveries), n in times.items():
        groups[-1 if due_at is None else max(1, math.ceil((due_at - now) / slot)), deliveries] += n
    return groups


def _rounded(due_at: float, delay: float) -> float:
    """Up to the next slot, so that there are SLOTS to 2 SLOTS of each delay."""
    slot = SLOT * 2.0 ** max(0, math.floor(math.log2(max(delay, SLOT) / SLOTS / SLOT)))
    return slot * math.ceil(due_at / slot)


def _delay_ms(seconds: float) -> int:
    return min(LONGEST_DELAY_MS, math.ceil(1000 * seconds))
