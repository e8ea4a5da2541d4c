"""Our own stream and buckets: what is missing is created, and states are written again into a new bucket."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.inputs import Input, RecordMissing
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime import slices
from nats_backpressure.runtime.failures import AFTER, Failures
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.own_resources import OwnResources
from nats_backpressure.runtime.ports import EventsUnavailable, Unavailable
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock, settled
from tests.support.background import meanwhile

NAMES = Names()
STATE = f"KV_{NAMES.state_bucket}"
OURS = (STATE, NAMES.events_stream, f"KV_{NAMES.policy_bucket}")


class World:
    def __init__(self) -> None:
        self.created, self.clock = 0, FakeClock()
        self.problem: Unavailable | None = Unavailable("not now")
        self.failures = Failures(self.clock)
        self.fed: list[tuple[str, Input]] = []
        policies = ActivePolicies((), Guard(), False)
        registry = SubjectRegistry(Settings(), self.clock, policies, "w", lambda effects: None)
        registry.get_or_create("s")
        registry.feed = lambda subject, input_: self.fed.append((subject, input_))  # type: ignore[method-assign]
        self.resources = OwnResources(NAMES, registry, self.clock, self.ensure, self.failures)

    async def ensure(self) -> None:
        self.created += 1
        if self.problem is not None:
            raise self.problem

    def failing(self) -> list[str]:
        """The stages that are said to fail."""
        self.clock.advance(AFTER)
        with capture_logs() as lines:
            self.failures.report()
        return [line["stage"] for line in lines if line["event"] == "stage.failing"]

    async def list(self, *lists: dict[str, str], complete: bool = True) -> None:
        """Each list has streams with the times at which they were created."""
        async with asyncio.TaskGroup() as tasks:
            self.resources.start(tasks)
            for each in lists:
                looks = tuple(StreamLook(name, created, 0, 0, 0) for name, created in each.items())
                self.resources.check(StreamsReading(looks, complete, 0.001, 1))
                await settled()


ALL = dict.fromkeys(OURS, "t")


async def test_as_long_as_they_are_there_nothing_happens() -> None:
    world = World()
    await world.list(ALL, ALL)
    assert (world.created, world.fed) == (0, [])


async def test_what_is_missing_is_created_again_after_every_list() -> None:
    world = World()
    for name in OURS:
        await world.list({other: at for other, at in ALL.items() if other != name})
    assert world.created == 3


async def test_in_an_incomplete_list_nothing_is_missing() -> None:
    world = World()
    await world.list({}, complete=False)
    assert world.created == 0


async def test_a_start_waits_for_the_state_bucket_and_not_for_the_events_stream() -> None:
    world = World()
    with pytest.raises(Unavailable):
        await world.resources.ensure()
    assert world.failing() == ["resources"]
    world.problem = EventsUnavailable("no leader")
    await world.resources.ensure()
    assert world.failing() == ["events stream"]
    world.problem = Unavailable("gone again, before the states were loaded")
    with pytest.raises(Unavailable):
        await world.resources.ensure()
    assert world.failing() == ["resources"], "before which nothing is read"


@pytest.mark.parametrize("complete", [True, False])
async def test_an_events_stream_that_could_not_be_had_is_tried_again_after_every_list(complete: bool) -> None:
    world = World()
    world.problem = EventsUnavailable("no leader")
    await world.resources.ensure()
    await world.list(ALL, complete=complete)
    assert (world.created, world.failing()) == (2, ["events stream"])
    world.problem = None
    await world.list(ALL, ALL, complete=complete)
    assert (world.created, world.failing()) == (3, [])


async def test_a_bucket_that_is_deleted_later_is_not_said_to_stop_the_reading() -> None:
    world = World()
    world.problem = None
    await world.resources.ensure()
    world.problem = Unavailable("may not be created")
    await world.list({})
    assert world.failing() == ["state bucket"]


async def test_others_have_turns_while_many_states_are_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)
    world = World()
    for n in range(100):
        world.resources._registry.get_or_create(f"s{n}")
    async with asyncio.TaskGroup() as group:
        world.resources.start(group)
        for created in "tu":
            looks = tuple(StreamLook(name, created, 0, 0, 0) for name in OURS)
            world.resources.check(StreamsReading(looks, True, 0.001, 1))
        turns = 0
        while len(world.fed) < 101:
            await asyncio.sleep(0)
            turns += 1
    assert turns > 100


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("seen_missing", [True, False])
async def test_whatever_of_ours_was_deleted_and_created_again_is_a_warning_with_its_cost(
    name: str, seen_missing: bool
) -> None:
    world, without = World(), {other: at for other, at in ALL.items() if other != name}
    with capture_logs() as lines:
        await world.list(ALL, *([without] if seen_missing else []), ALL | {name: "later"}, ALL | {name: "later"})
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert (line["event"], line["stream"]) == ("resources.recreated", name) and line["cost"] and line["hint"]


async def test_a_new_state_bucket_gets_every_state() -> None:
    world = World()
    await world.list(ALL, ALL | {STATE: "later"})
    assert world.fed == [("s", RecordMissing(recreated=True))]


async def test_a_bucket_that_is_gone_gets_every_state_once_there_is_another() -> None:
    world = World()
    without = {name: at for name, at in ALL.items() if name != STATE}
    await world.list(without, ALL)
    assert world.fed == [], "the first bucket there is"
    await world.list(without, without)
    assert world.fed == []
    await world.list(ALL | {STATE: "later"})
    assert world.fed == [("s", RecordMissing(recreated=True))]


async def test_other_events_than_before_are_read_with_the_next_list() -> None:
    world, read = World(), list[object]()

    async def read_events(take: object) -> None:
        read.append(take)

    async with meanwhile(world.resources.compare_events()):
        world.resources.take_other_events(False, read_events)
        await settled()
        assert not read, "what runs is not known before"
        await world.list(ALL, ALL)
    assert len(read) == 1


async def test_a_bucket_that_could_not_be_made_and_is_there_is_reported_working() -> None:
    """It is not tried again: the list shows that."""
    world = World()
    await world.list({})
    assert world.failing() == ["state bucket"]
    await world.list(ALL)
    with capture_logs() as lines:
        world.failures.report()
    assert [(line["event"], line["stage"]) for line in lines] == [("stage.works", "state bucket")]
