"""When messages that nobody holds any more come back, as a question tells it. Pure."""

from __future__ import annotations

import math
from collections import Counter

from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DUE

Lost = Counter[tuple[float | None, int]]
"""Numbers of messages, by when the delay is over that they were returned with (None: dropped) and their deliveries."""
SLOT = 0.05
"""Seconds within which two count as due at the same time, the later one; twice as many as long as there are more times
than a question can tell."""


def due_groups(lost: Lost, now: float) -> list[dict[str, int]]:
    """The field `due` of a question. All deliveries that are told apart fit twice: of dropped ones, and in one slot."""
    slot = SLOT
    while len(groups := _grouped(lost, slot, now)) > MOST_DUE:
        slot *= 2
    return [
        {"n": n, "deliveries": deliveries} | ({} if slots < 0 else {"delay_ms": _delay_ms(slots * slot)})
        for (slots, deliveries), n in sorted(groups.items())
    ]


def _grouped(lost: Lost, slot: float, now: float) -> Counter[tuple[int, int]]:
    """Numbers by slots from now on and deliveries; -1 slots for dropped ones."""
    groups = Counter[tuple[int, int]]()
    for (due_at, deliveries), n in lost.items():
        groups[-1 if due_at is None else max(1, math.ceil((due_at - now) / slot)), deliveries] += n
    return groups


def _delay_ms(seconds: float) -> int:
    return min(LONGEST_DELAY_MS, math.ceil(1000 * seconds))
