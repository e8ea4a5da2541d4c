"""How a refusal expires: without new proof, the admitted share rises step by step to 1.

A refusal may last only while a sidecar checks whether the overload has ended. The sidecar and every gateway apply the
same two functions, each by its own clock: a gateway that asks and one that watches get the same answer."""

from __future__ import annotations

import math

from nats_backpressure.protocol.values import ActionName

OPENING = 0.25
"""Share per second by which a refusal opens, so that not all callers come back at once."""
OPENING_STEP = 0.1
"""Seconds for which one ratio is used while a refusal opens."""
MISSED = 3
"""Proofs that must be missing before a refusal opens, so that none opens while they arrive on time."""


def holds_for(on_unknown: str, hold_seconds: float, stale_after: float, interval: float) -> float:
    """Seconds after the last proof at which a refusal begins to open.

    `interval` is the time between two proofs: between two readings or two heartbeats, whichever is longer. An
    `on_unknown` of another version holds.
    """
    match on_unknown:
        case "continue":
            return stale_after
        case "reject":
            return math.inf
        case _:
            return max(MISSED * interval, hold_seconds)


def aged(action: ActionName, ratio: float, on_unknown: str, opening: float, unknown: bool) -> tuple[ActionName, float]:
    """Action and share (0 for `reject`, 1 for `continue`) after `opening` seconds of opening; negative: not yet.

    A `continue` is never turned into a refusal by age, but under `on_unknown: reject`, which is also the only choice
    that never opens.
    """
    if on_unknown == "reject":
        return ("reject", 0.0) if unknown else (action, ratio)
    if action == "continue" or opening < 0:
        return action, ratio
    if on_unknown == "continue" or ratio + OPENING * opening >= 1:
        return "continue", 1.0
    return (action if opening == 0 else "throttle"), ratio + OPENING * opening
