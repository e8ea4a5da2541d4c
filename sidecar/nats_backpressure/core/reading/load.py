"""Load: how the plans of all streams together fit into the budget, and by which factor they are stretched."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.reading.budget import LOOK_SHARE, Budget

if TYPE_CHECKING:
    from nats_backpressure.core.reading.stream_plan import StreamPlan

EMPTY_INTERVAL = 60.0
"""Seconds between two readings of a stream without watched consumers; a change of its consumers shows in a look."""
EMPTY_SHARE = 0.1
"""The share of the requests that streams without watched consumers may use."""
LEAST_SHARE = 0.02
"""The share of the requests for a replica that reads nothing: it must be able to replace one that does."""
LIMITED_FOR, LIMITED_FACTOR = 10.0, 4.0
"""Seconds for which everything is read more rarely, by this factor, after the server refused a request because its API
is overloaded."""


class Load(Struct, frozen=True):
    """How the plans of all streams together fit into the budget."""

    factor: float = 1.0
    """How much more rarely all is read for now: the server refused requests."""
    empty_interval: float = EMPTY_INTERVAL
    """Seconds between two readings of a stream without watched consumers."""
    look_interval: float = 0.0
    """Seconds between two looks, as reached lately."""
    stretch: float = 1.0
    """The factor by which intervals are longer than planned because the budget is too small."""


def load_of(plans: Collection[StreamPlan], budget: Budget, looks: float, look_interval: float, factor: float) -> Load:
    """The load that all plans together are. `looks`: requests per second for looks; `factor`: how much more rarely all
    is read for now."""
    empty = sum(plan.pages + 1 for plan in plans if plan.is_empty)
    spare = _beside(looks, budget)
    load = Load(factor, max(EMPTY_INTERVAL, empty / (EMPTY_SHARE * spare)), look_interval)
    wanted = sum(plan.requests_per_second(load) for plan in plans)
    return replace(load, stretch=max(1.0, wanted / spare))


def own_rate(
    load: Load, own: Collection[StreamPlan], plans: Collection[StreamPlan], looks: tuple[float, float], budget: Budget
) -> float:
    """Requests per second of a replica that reads the streams `own` of all of them. Where there are enough for all,
    nobody counts. `looks`: those of this replica, and those of whichever replica looks."""
    if load.stretch <= 1.0:
        return budget.requests_per_second
    wanted = sum(plan.requests_per_second(load) for plan in own)
    share = wanted / sum(plan.requests_per_second(load) for plan in plans)
    rate = looks[0] + _beside(looks[1], budget) * share
    return min(budget.requests_per_second, max(LEAST_SHARE * budget.requests_per_second, rate))


def _beside(looks: float, budget: Budget) -> float:
    return max(budget.requests_per_second - looks, (1 - LOOK_SHARE) * budget.requests_per_second)
