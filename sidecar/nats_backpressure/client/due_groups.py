"""Sums up messages that come back at about the same time, so that a question can tell them. Pure."""

from __future__ import annotations

import math
from collections import Counter

from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES, MOST_DUE

SLOT = 0.05
"""Seconds within which messages count as due at the same time, the latest one."""
DROPPED = -math.inf
"""When messages are due that were dropped: nobody here knows the ack wait."""

Times = Counter[tuple[float, int]]
"""Numbers of messages, by when their delay is over and their deliveries."""

WAYS = (
    (MOST_DELIVERIES, (0.0, 1 / 8)),
    (4, (1 / 8,)),
    (2, (1 / 8,)),
    (1, (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1.0, 1e9)),
)
"""(deliveries that are told apart, parts of what remains of a delay by which one may be told too long): the first is
taken with which they fit. More deliveries count as the most of a group; only with `backoff` does that say too long."""


def grouped(times: Times, now: float) -> Times:
    """MOST_DUE groups at most, none due earlier than any in it, nor dropped and delayed ones in one."""
    for apart, parts in WAYS:
        kinds = sorted((min(of, apart), at, of) for at, of in times)
        for part in parts:
            if (groups := _merged(times, kinds, now, part)) is not None:
                return groups
    raise AssertionError("the last part is so long that all fit")


def not_due(times: Times, now: float) -> Times:
    """Those whose delay is not over. Nobody knows that of dropped ones."""
    return Times({time: n for time, n in times.items() if time[0] > now})


def as_field(groups: Times, now: float) -> list[dict[str, int]]:
    """The field `due` of a question."""
    return [
        {"n": n, "deliveries": deliveries} | ({} if due_at == DROPPED else {"delay_ms": _delay_ms(due_at - now)})
        for (due_at, deliveries), n in sorted(groups.items())
    ]


def _merged(times: Times, kinds: list[tuple[int, float, int]], now: float, part: float) -> Times | None:
    """None where they do not fit."""
    groups, group, until = Times(), (0, False), 0.0
    for told_of, due_at, deliveries in kinds:
        n, most = times[due_at, deliveries], deliveries
        if group == (told_of, due_at == DROPPED) and due_at <= until:
            (_, before), more = groups.popitem()
            n, most = n + more, max(before, deliveries)
        elif len(groups) == MOST_DUE:
            return None
        else:
            group, until = (told_of, due_at == DROPPED), max(now, due_at) + max(SLOT, part * (due_at - now))
        groups[due_at, most] = n
    return groups


def _delay_ms(seconds: float) -> int:
    return max(0, min(LONGEST_DELAY_MS, math.ceil(1000 * seconds)))
