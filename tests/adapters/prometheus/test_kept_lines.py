"""Lines that are kept from one scrape to the next: always those that a page without a past would have."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Status
from nats_backpressure.queries.lookup import SubjectLookup, SubjectView
from tests.simulations.metrics_page import NOW, Clock, P, World, member, state

SUBJECTS = ("a", "b", 'c"d', "_other")
FIRING = SubjectAlert("long", "critical", "pending_above: 5", "firing", NOW.wall)
STATES = st.builds(
    lambda pending, drain, gauges, status, alerts, mode: (pending, drain, gauges, status, alerts, mode),
    st.integers(0, 2),
    st.sampled_from([None, 1.0]),
    st.sets(st.sampled_from(["c", "c2", "_other"])),
    st.sampled_from([Status.ACTIVE, Status.INACTIVE]),
    st.sampled_from([(), (FIRING,)]),
    st.sampled_from(["enforce", "observe"]),
)
CHANGES = st.tuples(st.sampled_from(SUBJECTS), st.none() | STATES)
EVENTS = st.tuples(st.sampled_from(SUBJECTS), st.sampled_from(["recovery", "backpressure_active"]))


def made(subject: str, facts: tuple) -> SubjectState:  # type: ignore[type-arg]
    pending, drain, consumers, status, alerts, mode = facts
    members = (member(name, pending=pending, drain=drain) for name in sorted(consumers))
    policy = Policy(mode=mode)
    return state(subject, *(replace(one, policy=policy) for one in members), status=status, alerts=alerts)


def lines(page: str) -> list[str]:
    return sorted(line for line in page.splitlines() if not line.startswith(("process_", "python_")))


@given(st.lists(st.lists(CHANGES | EVENTS, max_size=4), max_size=6), st.sampled_from([1, 3, 1000]))
def test_after_any_changes_the_page_is_that_of_one_without_a_past(scrapes: list[list], most: int) -> None:  # type: ignore[type-arg]
    world = World(max_subjects=most)
    for changes in scrapes:
        for subject, change in changes:
            if isinstance(change, str):
                world.metrics.event(subject, change)
            elif change is None:
                world.view.states.pop(subject, None)
            else:
                world.view.states[subject] = made(subject, change)
        world.text()  # labels of what is gone are given back at the beginning of the next page
        kept = world.text()
        anew = StateCollector(
            world.view, SubjectLookup(world.view).answer, world.metrics, Clock(), lambda now: world.health
        )
        anew._shared_time, anew._consumers = world.page._shared_time, world.page._consumers
        for counter in world.metrics._counters.values():
            for group in counter._groups.values():
                group.text_of = -1
        world.metrics.expose(anew.text)
        assert lines(kept) == lines(world.text())
        world.metrics.expose(world.page.text)


def test_what_is_counted_between_two_scrapes_is_on_the_next_page() -> None:
    world = World()
    world.watch(state("a", member()))
    for n in range(3):
        assert world.values(P + "recovery_total")["a",] == n
        world.metrics.event("a", "recovery")


def test_a_scrape_leaves_no_view_of_a_subject_behind() -> None:
    world = World()
    world.watch(*(state(f"subject.{n}", member()) for n in range(100)))
    before = _views()
    world.text()
    assert _views() == before


def _views() -> int:
    return sum(isinstance(each, SubjectView) for each in gc.get_objects())
