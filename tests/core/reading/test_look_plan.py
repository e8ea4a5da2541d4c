"""By which requests the streams are looked at, and how often."""

from __future__ import annotations

import pytest

from nats_backpressure.core.reading.budget import Budget
from nats_backpressure.core.reading.look_plan import LookPlan
from nats_backpressure.core.reading.sharing import LISTS, LOOKS

BUDGET = Budget(0.1, 8.0, 1000, 1)
LOOK_SECONDS = 1.5e-4


def measured(streams: int, list_seconds: float) -> LookPlan:
    """A plan after one list and many looks."""
    plan = LookPlan(BUDGET, 1.0)
    plan.finish_list(streams, list_seconds)
    for _ in range(100):
        plan.finish_look(LOOK_SECONDS)
    return plan


@pytest.mark.parametrize(
    ("watched", "streams", "list_seconds", "by_list"),
    [
        pytest.param(1, 4, 3e-4, True, id="one in a small account, where a list answers all other questions too"),
        pytest.param(1, 1000, 4e-3, False, id="one in a large account"),
        pytest.param(20, 23, 1e-3, True, id="many, in one page"),
        pytest.param(2, 2000, 1e-2, False, id="few among very many"),
    ],
)
def test_looks_are_taken_the_way_that_costs_the_server_less(
    watched: int, streams: int, list_seconds: float, by_list: bool
) -> None:
    plan = measured(streams, list_seconds)
    plan.make(watched, list_hangs=False)
    assert (plan.by_lists, plan.singly) == (by_list, not by_list)


@pytest.mark.parametrize(
    ("watched", "list_hangs", "by_lists", "singly"),
    [
        pytest.param(0, False, False, False, id="none is watched"),
        pytest.param(0, True, False, False, id="none is watched, and the list hangs"),
        pytest.param(20, False, True, False, id="many"),
        pytest.param(20, True, False, True, id="many, but the list hangs"),
    ],
)
def test_watched_streams_are_looked_at_in_one_way_and_singly_while_the_list_hangs(
    watched: int, list_hangs: bool, by_lists: bool, singly: bool
) -> None:
    plan = measured(23, 1e-3)
    plan.make(watched, list_hangs)
    assert (plan.by_lists, plan.singly) == (by_lists, singly)
    assert (plan.look_due_at() < 1e9) is singly


def test_a_change_of_the_streams_hastens_the_list_until_one_was_asked_for_after_it() -> None:
    plan = measured(1000, 4e-3)
    plan.make(1, list_hangs=False)
    assert plan.every(LISTS) == 1.0
    plan.hurry(now=100.0)
    plan.make(1, list_hangs=False)
    assert plan.every(LISTS) == BUDGET.min_interval
    plan.receive_list(99.9, 1000, 4e-3)
    plan.make(1, list_hangs=False)
    assert plan.every(LISTS) == BUDGET.min_interval, "it was asked for before"
    plan.receive_list(100.0, 1000, 4e-3)
    plan.make(1, list_hangs=False)
    assert plan.every(LISTS) == 1.0


def test_lists_that_fail_are_asked_for_again_after_a_growing_time() -> None:
    plan, waits = measured(23, 1e-3), list[float]()
    plan.make(20, list_hangs=False)
    for _ in range(6):
        plan.start_list(100.0)
        plan.fail_list()
        waits.append(plan.list_due_at(LOOKS, plan.every(LOOKS)) - 100.0)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    plan.finish_list(23, 1e-3)
    assert plan.list_due_at(LOOKS, 0.1) == pytest.approx(100.1)


def test_an_outage_is_no_interval_between_looks() -> None:
    plan = measured(23, 1e-3)
    plan.make(20, list_hangs=False)
    for at in (100.0, 100.15):
        plan.start_list(at)
        plan.finish_list(23, 1e-3)
    plan.start_list(100.3)
    plan.fail_list()
    plan.start_list(200.0)
    assert plan.reached <= 0.2


@pytest.mark.parametrize("watched", [1, 20])
def test_the_link_makes_looks_no_rarer(watched: int) -> None:
    budget = Budget(0.1, 8.0, 1000, 0.05)
    near, far = LookPlan(budget, 1.0), LookPlan(budget, 1.0)
    for plan, trip in ((near, 0.0), (far, 0.3)):
        for _ in range(50):
            plan.finish_list(4, 3e-4 + trip, trip)
            plan.finish_look(LOOK_SECONDS + trip, trip)
        plan.make(watched, list_hangs=False)
    assert (near.list_every, near.look_every) == pytest.approx((far.list_every, far.look_every))
    assert far.list_took > 0.3, "what others wait for"
