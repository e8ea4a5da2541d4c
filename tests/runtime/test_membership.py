"""One property of members, for any changes of consumers, `watch` and process.

A member that is not read holds no subject for longer than its limit; an unreadable one that exists is not removed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.reading.budget import Budget
from nats_backpressure.core.status.freshness import status_proof
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventSent,
    KeyRemoved,
    LoadRecord,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RemoveKey,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import worst_member
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock
from tests.fakes.observer import FakeJetStream

STALE, UNKNOWN = 1.0, 3.0
OBSERVE = Observe(stale_after_seconds=STALE, unknown_after_seconds=UNKNOWN, min_interval_ms=100, max_interval_ms=100)
POLICY = PolicyEntry((">",), ("*",), (("pending.warn", 1), ("pending.critical", 2), ("pending.overload", 3)))
KEYS = [ConsumerKey("S", "a"), ConsumerKey("S", "b"), ConsumerKey("T", "a")]
WATCHES = [
    [WatchEntry("*")],
    [WatchEntry("*", ("a",))],
    [WatchEntry("S")],
    [WatchEntry("T", ("b",)), WatchEntry("S", ("b",))],
]
KINDS = {
    "counts": ConsumerConfig(),
    "acknowledges nothing": ConsumerConfig(ack_policy="none"),
    "ephemeral": ConsumerConfig(durable=False),
}
AWAY = ["hidden", "unreadable", "unnamed"]


class World:
    """Streams that outlive every process that reads them, and what these processes stored."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.js = FakeJetStream(self.clock)
        for stream in ("S", "T"):
            self.js.add_stream(stream, (f"{stream}.x", f"{stream}.y"))
            for subject in ("x", "y"):
                self.js.publish(stream, f"{stream}.{subject}", 10)
        self.stored: dict[str, tuple[Record, int]] = {}
        self.watch = WATCHES[0]
        self.start()

    def start(self) -> None:
        """Another process, which knows what is stored and nothing else."""
        self.acts: deque[Effect] = deque()
        rules = ActivePolicies((POLICY,), Guard(), False)
        self.registry = SubjectRegistry(Settings(observe=OBSERVE), self.clock, rules, "w", self.acts.extend)
        self.registry.observing = True
        intake = Intake(self.registry, self.clock, self.watch, (), lambda what, key, why: None)
        self.poller = Poller(
            self.js,
            self.clock,
            intake,
            Budget(0.1, 0.1, 1000, 1),
            stale_after=STALE,
            count=lambda what: None,
            on_streams=lambda reading: None,
            on_read=lambda took: None,
        )
        for subject, (record, revision) in self.stored.items():
            self.registry.get_or_create(subject)
            self.registry.feed(subject, RecordLoaded(record, revision))
        self.answer()

    def answer(self) -> None:
        while self.acts:
            match self.acts.popleft():
                case LoadRecord(subject):
                    known = self.stored.get(subject)
                    self.registry.feed(subject, RecordLoaded(*known) if known else RecordCreated("e"))
                case WriteRecord(subject, writing):
                    revision = writing.expected + 1
                    self.stored[subject] = writing.record, revision
                    self.registry.feed(subject, WriteDone(writing.nonce, revision))
                case PublishEvent(subject, event):
                    self.registry.feed(subject, EventSent(event.id))
                case RemoveKey(subject):
                    self.registry.feed(subject, KeyRemoved())

    def under(self, key: ConsumerKey) -> tuple[str, ...]:
        """The subjects a consumer counts under, by what is so."""
        consumer = self.js.all[key.stream].consumers.get(key.consumer)
        if consumer is None:
            return ()
        subjects = watch_filter.counted_subjects(key, consumer.config, self.js.all[key.stream].subjects, self.watch, ())
        return () if isinstance(subjects, str) else subjects

    def members(self) -> set[tuple[ConsumerKey, str]]:
        return {(key, subject) for subject, state in self.registry.subjects.items() for key in state.members}

    async def look(self) -> None:
        """One round of readings, with those one by one that follow; and what must hold after it."""
        before = self.members()
        down, away = self.js.down is not None, self.js.hidden | self.js.unreadable | self.js.unnamed
        if not down:
            self.poller.discover(await self.js.streams())
        tried = set(self.poller.polls)
        for poll in tuple(self.poller.polls.values()):
            if await self.poller.readings.attempt(poll) and not poll.plan.retry:
                await self.poller.readings.read_singly(poll, sorted(poll.silent))
        self.answer()
        after = self.members()
        for key, subject in before:
            exists = key.consumer in self.js.all[key.stream].consumers
            named = watch_filter.is_name_watched(key, self.watch, ())
            if exists and named and (down or key in away & self.js.silent):
                assert (key, subject) in after, "what is there and could not be read stays"
        for key, subject in after:
            chosen = watch_filter.is_name_watched(key, self.watch, ())
            assert chosen or key.stream not in tried, "a name the watch leaves out is out, answered for or not"
            if not down:
                shown = key.consumer in self.js.all[key.stream].consumers and key not in away
                assert not shown or subject in self.under(key), "what was answered for and does not count is out"

    async def live(self, seconds: float) -> None:
        """Time in which what can be read is read."""
        for _ in range(round(seconds / 0.5)):
            await self.pass_time(0.5)
            await self.look()
            self.check()

    async def pass_time(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.5))):
            self.clock.advance(min(seconds, 0.5))
            self.registry.tick()
            self.answer()
            self.check()

    def check(self) -> None:
        """Every member that holds a subject above inactive was read, or restored, within the limit."""
        now = self.clock.now().mono
        for state in self.registry.subjects.values():
            speaks = worst_member(state.members.values())
            if state.record is None or state.record.unknown or speaks is None or speaks.status <= Status.INACTIVE:
                continue
            proved = status_proof(state.members.values())
            assert proved is not None and now - proved < UNKNOWN, (speaks.key, proved, now)

    async def settled(self) -> None:
        """Once everything can be read, members are who counts, and nobody else, within two looks a second apart."""
        self.js.down, self.js.incomplete = None, False
        for away in AWAY:
            getattr(self.js, away).clear()
        self.js.silent.clear()
        for _ in range(3):
            await self.look()
            self.clock.advance(1.1)
        assert self.members() == {(key, subject) for key in KEYS for subject in self.under(key)}
        read = [state.record for state in self.registry.subjects.values() if state.members]
        assert not any(record and record.stale for record in read)


keys = st.sampled_from(KEYS)
MOVES: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("make"), keys, st.sampled_from("xy"), st.sampled_from(sorted(KINDS)), st.booleans()),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("away"), keys, st.sampled_from(AWAY), st.booleans()),
    st.tuples(st.just("back"), keys),
    st.tuples(st.just("down"), st.booleans()),
    st.tuples(st.just("incomplete"), st.booleans()),
    st.tuples(st.just("watch"), st.sampled_from(WATCHES)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("wait"), st.sampled_from([0.2, 1.1, 2.5, 4.0])),
    st.tuples(st.just("live"), st.sampled_from([1.5, 4.0])),
)


async def make(world: World, key: ConsumerKey, subject: str, kind: str, calm: bool) -> None:
    config = KINDS[kind]
    world.js.add_consumer(
        key, ConsumerConfig(durable=config.durable, ack_policy=config.ack_policy, filters=(f"{key.stream}.{subject}",))
    )
    if calm:
        world.js.of(key).skip_to(20)


async def delete(world: World, key: ConsumerKey) -> None:
    world.js.all[key.stream].consumers.pop(key.consumer, None)


async def away(world: World, key: ConsumerKey, how: str, silent: bool) -> None:
    getattr(world.js, how).add(key)
    (world.js.silent.add if silent else world.js.silent.discard)(key)


async def back(world: World, key: ConsumerKey) -> None:
    for how in (*AWAY, "silent"):
        getattr(world.js, how).discard(key)


async def down(world: World, off: bool) -> None:
    world.js.down = "away" if off else None


async def incomplete(world: World, so: bool) -> None:
    world.js.incomplete = so


async def watch(world: World, entries: list[WatchEntry]) -> None:
    world.watch = entries
    world.start()


async def restart(world: World) -> None:
    world.start()


DO: dict[str, Callable[..., Any]] = {
    "make": make,
    "delete": delete,
    "away": away,
    "back": back,
    "down": down,
    "incomplete": incomplete,
    "watch": watch,
    "restart": restart,
    "wait": World.pass_time,
    "live": World.live,
}


@given(st.lists(st.tuples(MOVES, st.booleans()), min_size=5, max_size=40))
def test_nothing_that_is_not_read_holds_a_subject_and_nothing_unreadable_is_taken_out(
    moves: list[tuple[tuple[Any, ...], bool]],
) -> None:
    async def play() -> None:
        world = World()
        for key in KEYS:
            await make(world, key, "x", "counts", calm=key.consumer == "b")
        await world.look()
        for (what, *arguments), looked in moves:
            await DO[what](world, *arguments)
            if looked:
                await world.look()
        await world.settled()

    asyncio.run(play())
