"""Another events stream than before: only the states that its events contradict are read again, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.subject.inputs import Input, RecordMissing
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import Status
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.event_comparison import AT_A_TIME, LAST_LOOK, TRIES, EventComparison
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.core.subject.test_newest_record import event as unsent
from tests.fakes.clock import FakeClock, settled
from tests.fakes.event_log import encoded_event
from tests.support.background import meanwhile

Take = Callable[[CachedEvent], object]


def stored(seq: int, to: str, subject: str = "s") -> CachedEvent:
    event = parse_event(encoded_event(seq, 1000 * seq, to, subject=subject))
    assert event is not None
    return event


class World:
    """Subjects whose records are read again when `loaded` says so."""

    def __init__(self) -> None:
        self.clock, self.fed = FakeClock(), list[str]()
        policies = ActivePolicies((), Guard(), False)
        self.registry = SubjectRegistry(Settings(), self.clock, policies, "w", lambda effects: None)
        self.registry.feed = self._feed  # type: ignore[method-assign]
        self.comparison = EventComparison("E", self.registry, self.clock)
        self.events, self.problem = list[CachedEvent](), ""
        self.during: Callable[[], object] = lambda: None
        """What happens while the events are read."""

    def _feed(self, subject: str, input_: Input) -> None:
        assert input_ == RecordMissing()
        self.fed.append(subject)
        self.registry.subjects[subject] = replace(self.registry.subjects[subject], must_reload=True)

    def loaded(self, *subjects: str) -> None:
        for subject in subjects:
            self.registry.subjects[subject] = replace(self.registry.subjects[subject], must_reload=False)

    def waiting(self) -> list[str]:
        return [subject for subject, state in self.registry.subjects.items() if state.must_reload]

    def knows(self, record: Record, published: frozenset[str] = frozenset()) -> None:
        state = self.registry.get_or_create(record.subject)
        self.registry.subjects[record.subject] = replace(state, record=record, published=published)

    async def read(self, take: Take) -> None:
        if self.problem:
            raise Unavailable(self.problem)
        for event in self.events:
            take(event)
        self.during()

    async def compare(self, older: bool = False) -> int:
        """Compare once; returns how often it is logged that the stream went back."""
        with capture_logs() as lines:
            async with meanwhile(self.comparison.run()):
                self.comparison.other_events(older, self.read)
                await settled()
                assert self.fed == [], "what runs is not known before the next list"
                for _ in range(TRIES):
                    self.comparison.listed()
                    await settled()
        return [line["event"] for line in lines if line["log_level"] == "warning"].count("events.went_back")


W, I = Status.WARNING, Status.INACTIVE  # noqa: E741
CALM, WARNED = Record("s", "e", seq=4), Record("s", "e", seq=3, status=W, announced=W, incident="i")
WAITING = replace(CALM, unsent=(unsent(4, I),))
SENT = frozenset({WAITING.unsent[0].id})


@pytest.mark.parametrize(
    ("record", "published", "events", "again"),
    [
        pytest.param(CALM, frozenset(), [], False, id="nothing"),
        pytest.param(CALM, frozenset(), [stored(4, "inactive")], False, id="the last event"),
        pytest.param(CALM, frozenset(), [stored(2, "inactive")], False, id="an older one that led to the same"),
        pytest.param(CALM, frozenset(), [stored(3, "warning")], True, id="an older one that led to another status"),
        pytest.param(
            CALM, frozenset(), [stored(4, "warning", "other")], False, id="one of a subject that is not known"
        ),
        pytest.param(WAITING, frozenset(), [stored(3, "warning")], False, id="the one before that waits"),
        pytest.param(WAITING, frozenset(), [stored(4, "inactive")], False, id="the one that waited"),
        pytest.param(WAITING, SENT, [stored(3, "warning")], True, id="the one before that was in the other stream"),
        pytest.param(WARNED, frozenset(), [stored(3, "warning")], True, id="another incident"),
        pytest.param(
            WARNED, frozenset(), [stored(2, "inactive"), stored(1, "warning")], True, id="the order is theirs"
        ),
    ],
)
@pytest.mark.parametrize("older", [False, True])
async def test_only_a_subject_that_is_contradicted_is_read_again_and_only_then_it_is_reported(
    record: Record, published: frozenset[str], events: list[CachedEvent], again: bool, older: bool
) -> None:
    world = World()
    world.knows(record, published)
    world.knows(Record("without events", "e", seq=7, status=W, announced=W, incident="i"))
    world.events = events
    assert await world.compare(older) == (again or older)
    assert world.fed == (["s"] if again else [])


@pytest.mark.parametrize("after", [(WAITING, SENT), (CALM, frozenset())])
async def test_what_is_published_while_the_events_are_read_is_not_missing_in_them(
    after: tuple[Record, frozenset[str]],
) -> None:
    world = World()
    world.knows(WAITING)
    world.events = [stored(3, "warning")]
    world.during = lambda: world.knows(*after)
    assert (await world.compare(), world.fed) == (0, [])


async def test_a_stream_that_is_ahead_is_no_older_copy() -> None:
    """Another replica may have published before its record came here."""
    world = World()
    world.knows(CALM)
    world.events = [stored(5, "warning")]
    assert (await world.compare(), world.fed) == (0, ["s"])


async def test_few_are_held_up_at_a_time_and_none_waits_for_one_that_is_not_read() -> None:
    world, names = World(), [f"s{n}" for n in range(3 * AT_A_TIME)]
    for name in names:
        world.knows(replace(CALM, subject=name))
    world.events = [stored(3, "warning", name) for name in names]
    async with meanwhile(world.comparison.run()):
        world.comparison.other_events(True, world.read)
        world.comparison.listed()
        await settled()
        assert world.waiting() == names[:AT_A_TIME]
        world.loaded(*names[1:AT_A_TIME])
        await world.clock.run(1.0)
        assert world.waiting() == [names[0], *names[AT_A_TIME : 2 * AT_A_TIME - 1]]
        world.registry.forget(names[0])
        world.loaded(*world.waiting())
        await world.clock.run(1.0)
        assert world.waiting() == names[2 * AT_A_TIME - 1 : 3 * AT_A_TIME - 1]
        world.loaded(*world.waiting())
        await world.clock.run(1.0)
        assert world.fed == names


async def test_where_none_can_be_read_the_others_are_not_held_up_and_few_looks_are_taken() -> None:
    """An outage may last for hours."""
    world, names, looks = World(), [f"s{n}" for n in range(2 * AT_A_TIME)], 0
    for name in names:
        world.knows(replace(CALM, subject=name))
    world.events = [stored(3, "warning", name) for name in names]
    unread = world.comparison._unread

    def counted(subjects: Iterable[str]) -> set[str]:
        nonlocal looks
        looks += 1
        return unread(subjects)

    world.comparison._unread = counted  # type: ignore[method-assign]
    async with meanwhile(world.comparison.run()):
        world.comparison.other_events(True, world.read)
        world.comparison.listed()
        await world.clock.run(3600.0)
        assert world.fed == names[:AT_A_TIME] and looks < 2 * 3600 / LAST_LOOK
        world.loaded(*names[:AT_A_TIME])
        await world.clock.run(2 * LAST_LOOK)
        assert world.fed == names


async def test_where_the_events_cannot_be_read_every_stored_state_is() -> None:
    world = World()
    world.problem = "a right is missing"
    world.knows(CALM)
    world.registry.get_or_create("not stored")
    assert (await world.compare(older=True), world.fed) == (1, ["s"])


async def test_what_can_be_read_at_the_second_try_is_compared() -> None:
    world = World()
    world.problem = "no leader"
    world.knows(CALM)
    world.events = [stored(4, "inactive")]
    async with meanwhile(world.comparison.run()):
        world.comparison.other_events(False, world.read)
        for world.problem in ("no leader", "no leader", ""):
            world.comparison.listed()
            await asyncio.sleep(0)
            await settled()
    assert world.fed == []
