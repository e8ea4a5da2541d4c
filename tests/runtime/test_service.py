"""The service on fakes: faults that a real server cannot produce on demand, at every write and every publish."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace as replaced

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model import ConsumerConfig
from nats_backpressure.policy.active import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.values import ConsumerKey, EventType, Status
from nats_backpressure.queries import serialize
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.service import Service
from tests.fakes.observer import FakeJetStream
from tests.fakes.stores import STATUS_EVENTS, FakeEventPublisher, FakeStateStore
from tests.support.sidecar import eventually

KEY = ConsumerKey("ROUTER", "router")
SUBJECT = "decide"
SETTINGS = Settings(
    instance="here", observe=Observe(min_interval_ms=10, stale_after_seconds=1, unknown_after_seconds=2)
)


class Quiet:
    """Nobody counts."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class FakePolicies:
    """A policy bucket that tells at once what it holds."""

    def __init__(self) -> None:
        self.entries: dict[str, PolicyValue] = {}
        self._told: list[Callable[[PolicySnapshot], None]] = []

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        self._told.append(on_change)
        on_change(PolicySnapshot("b", dict(self.entries)))
        await asyncio.Event().wait()

    def put(self, key: str, value: bytes) -> None:
        self.entries[key] = PolicyValue(value, len(self.entries) + 1)
        for on_change in self._told:
            on_change(PolicySnapshot("b", dict(self.entries)))


class World:
    """One JetStream, one bucket and one events stream, outliving every service that runs on them."""

    def __init__(self) -> None:
        self.js = FakeJetStream(SystemClock())  # type: ignore[arg-type]  # any clock will do
        self.js.add_stream(KEY.stream, (SUBJECT,))
        self.js.add_consumer(KEY, ConsumerConfig())
        self.store, self.publisher, self.policies = FakeStateStore(), FakeEventPublisher(), FakePolicies()
        self.lives = 0

    async def nothing(self) -> None:
        """The resources are always there."""

    @asynccontextmanager
    async def living(self, settings: Settings = SETTINGS) -> AsyncIterator[Service]:
        """A service that runs, and is killed without a word at the end."""
        self.lives += 1
        service = Service(
            settings,
            SystemClock(),
            self.js,
            self.store,
            self.publisher,
            self.policies,
            self.nothing,
            Quiet(),
            writer=f"life-{self.lives}",
            render_state=serialize.state_value,
            render_beat=lambda book, now, leaving: serialize.heartbeat(book, "here", now, leaving),
            on_looks=lambda looks: None,
        )
        task = asyncio.create_task(service.run(asyncio.Event(), 1.0))
        try:
            yield service
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def told(self, service: Service, status: Status) -> None:
        async def settled() -> bool:
            state = service.registry.subjects.get(SUBJECT)
            return bool(state and state.record and state.record.announced is status and not state.record.unsent)

        await eventually(settled, f"{status.word} to be told")

    def load(self) -> None:
        self.js.publish(KEY.stream, SUBJECT, 20_000)

    def unload(self) -> None:
        self.js.purge(KEY.stream)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_each_change_is_told_once(seed: int) -> None:
    dice = random.Random(seed)
    world = World()
    for faults in (world.store.faults, world.publisher.faults):
        faults.before = faults.after = lambda: dice.random() < 0.25
    for life in range(3):
        (world.load if life % 2 == 0 else world.unload)()
        async with world.living():
            await asyncio.sleep(dice.uniform(0.0, 0.3))
    for faults in (world.store.faults, world.publisher.faults):
        faults.before = faults.after = lambda: False
    world.unload()
    async with world.living() as service:
        await service.known.wait()
        await world.told(service, Status.INACTIVE)
        world.load()
        await world.told(service, Status.ACTIVE)
    told = world.publisher.told
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    moves = [event for event in told if event.type in STATUS_EVENTS]
    assert all(a.now is b.was for a, b in pairwise(moves))
    assert moves[-1].now is Status.ACTIVE


async def test_a_slow_list_of_one_stream_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_stream("STUCK", ("stuck",))
    world.js.add_consumer(ConsumerKey("STUCK", "c"), ConsumerConfig())
    consumers = world.js.consumers

    async def slow(stream: str) -> Any:
        if stream == "STUCK":
            await asyncio.sleep(60)
        return await consumers(stream)

    monkeypatch.setattr(world.js, "consumers", slow)
    async with world.living() as service:
        await world.told(service, Status.INACTIVE)
        world.load()
        await world.told(service, Status.ACTIVE)


async def test_members_missing_from_a_list_are_not_gone() -> None:
    world = World()
    async with world.living() as service:
        world.load()
        await world.told(service, Status.ACTIVE)
        world.js.hidden.add(KEY)
        await asyncio.sleep(1.3)  # beyond the second in which a consumer that is gone would be taken out
        assert KEY in service.registry.subjects[SUBJECT].members


AUDIT, NEIGHBOUR = ConsumerKey(KEY.stream, "audit"), ConsumerKey(KEY.stream, "neighbour")


@pytest.mark.parametrize("how", ["hidden", "unreadable", "unnamed"])
async def test_a_consumer_that_was_deleted_goes_whatever_cannot_be_read_beside_it(how: str) -> None:
    world = World()
    for key in (AUDIT, NEIGHBOUR):
        world.js.add_consumer(key, ConsumerConfig())
    async with world.living() as service:
        world.load()
        for key in (KEY, NEIGHBOUR):
            world.js.of(key).skip_to(20_000)  # all of it is done
        await world.told(service, Status.ACTIVE)
        getattr(world.js, how).add(NEIGHBOUR)
        world.js.silent.add(NEIGHBOUR)
        world.js.delete_consumer(AUDIT)
        await world.told(service, Status.INACTIVE)
        members = service.registry.subjects[SUBJECT].members
        assert AUDIT not in members and NEIGHBOUR in members


async def test_one_member_that_does_not_answer_delays_no_other_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_consumer(AUDIT, ConsumerConfig())
    single = world.js.consumer

    async def slow(key: ConsumerKey) -> Any:
        await asyncio.sleep(60)
        return await single(key)

    monkeypatch.setattr(world.js, "consumer", slow)
    async with world.living(replaced(SETTINGS, observe=replaced(SETTINGS.observe, max_interval_ms=100))) as service:
        await world.told(service, Status.INACTIVE)
        world.js.hidden.add(AUDIT)
        await asyncio.sleep(0.3)
        world.load()
        await world.told(service, Status.ACTIVE)


def written(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every state that is written from now on: its subject and freshness."""
    found: list[tuple[str, str]] = []
    write = world.store.write

    async def noting(subject: str, value: bytes, expected: int, nonce: str) -> int:
        revision = await write(subject, value, expected, nonce)
        found.append((subject, json.loads(value)["freshness"]))
        return revision

    monkeypatch.setattr(world.store, "write", noting)
    return found


def unreadable(world: World, monkeypatch: pytest.MonkeyPatch, stream: str) -> set[str]:
    """The streams that cannot be read; put some in."""
    consumers, away = world.js.consumers, {stream}

    async def some(name: str) -> Any:
        if name in away:
            raise Unavailable("no right to list its consumers")
        return await consumers(name)

    monkeypatch.setattr(world.js, "consumers", some)
    return away


async def test_one_stream_that_cannot_be_read_ages_alone_and_is_written_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark",))
    world.js.add_consumer(ConsumerKey("DARK", "c"), ConsumerConfig())
    async with world.living() as service:
        await service.known.wait()
        noted = written(world, monkeypatch)
        away = unreadable(world, monkeypatch, "DARK")

        async def told(freshness: str) -> bool:
            return ("dark", freshness) in noted

        await eventually(lambda: told("stale"), "the stale state")
        await eventually(lambda: told("unknown"), "the unknown one")
        away.clear()
        await eventually(lambda: told("known"), "it to be known again")
        assert [word for subject, word in noted if subject == "dark"].count("stale") == 1
        assert {word for subject, word in noted if subject == SUBJECT} <= {"known"}


async def test_an_outage_of_everything_writes_no_stale_states_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for n in range(30):
        world.js.add_stream(f"S{n}", (f"s.{n}",))
        world.js.add_consumer(ConsumerKey(f"S{n}", "c"), ConsumerConfig())
    async with world.living() as service:
        await service.known.wait()
        noted = written(world, monkeypatch)
        world.js.down = "NATS is away"
        await asyncio.sleep(1.6)  # beyond the limit for stale, before that for unknown
        assert service.registry.swept_at is not None and SystemClock().now().mono - service.registry.swept_at > 1
        world.js.down = None
        before = service.registry.swept_at

        async def again() -> bool:
            return service.registry.swept_at != before

        await eventually(again, "the heartbeat to move on")
        assert all(
            len({m.proof for m in state.members.values()} - {None}) for state in service.registry.subjects.values()
        )
        await asyncio.sleep(1.0)
        assert {word for _, word in noted} <= {"known"}


async def test_after_an_outage_the_heartbeat_waits_until_each_stream_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark",))
    world.js.add_consumer(ConsumerKey("DARK", "c"), ConsumerConfig())
    patient = replaced(SETTINGS, observe=replaced(SETTINGS.observe, unknown_after_seconds=10))
    async with world.living(patient) as service:
        await service.known.wait()
        noted = written(world, monkeypatch)
        away = unreadable(world, monkeypatch, "DARK")
        away.add(KEY.stream)
        await asyncio.sleep(1.6)
        away.discard(KEY.stream)
        before = service.registry.swept_at

        async def again() -> bool:
            return service.registry.swept_at != before

        await eventually(again, "the heartbeat to move on")

        async def stale() -> bool:
            return ("dark", "stale") in noted

        # As soon as the heartbeat would prove it: not a limit later.
        await eventually(stale, "the stale state", 0.8)


async def test_a_list_of_streams_that_stays_incomplete_delays_the_first_answer_only_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nats_backpressure.runtime.poller.ROUND_WITHIN", 0.5)
    world = World()
    world.js.incomplete = True
    async with world.living() as service:
        async with asyncio.timeout(3):
            await service.known.wait()
        assert service.registry.subjects[SUBJECT].members and service.registry.unread("other")


async def test_of_a_stream_that_was_never_read_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark.>",))
    unreadable(world, monkeypatch, "DARK")
    async with world.living() as service:
        async with asyncio.timeout(3):
            await service.known.wait()
        assert [service.registry.unread(subject) for subject in ("dark.x", "dark.*", "light.x")] == [True, True, False]


async def test_nothing_is_said_while_the_first_states_cannot_be_stored() -> None:
    world = World()
    world.store.faults.before = lambda: True
    async with world.living() as service:
        await asyncio.sleep(0.2)
        assert service.registry.swept_at is None
    assert world.publisher.told == []


async def test_an_event_that_can_never_be_published_silences_nothing_after_it() -> None:
    world = World()
    world.publisher.impossible = lambda subject, kind: kind is EventType.ALERT_FIRING
    async with world.living() as service:
        world.load()
        await world.told(service, Status.ACTIVE)
        world.unload()
        await world.told(service, Status.INACTIVE)
    told = world.publisher.told
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert [event.type for event in told if event.type in STATUS_EVENTS] == [EventType.ACTIVE, EventType.RECOVERY]


async def test_one_refusal_that_cannot_be_published_keeps_no_other_back() -> None:
    world = World()
    world.publisher.impossible = lambda subject, kind: subject == "endless"
    world.publisher.refusing.add("later")
    for key in ("endless", "later", "bad"):
        world.policies.entries[key] = PolicyValue(b"{", 1)
    async with world.living() as service:
        await service.known.wait()

        async def refused(key: str) -> bool:
            return key in {event.subject for event in world.publisher.told}

        await eventually(lambda: refused("bad"), "the one that can be published")
        ruled = 0
        rule = service.registry.rule

        def counting(subject: str) -> None:
            nonlocal ruled
            ruled += 1
            rule(subject)

        service.registry.rule = counting  # type: ignore[method-assign]
        await asyncio.sleep(0.5)
        assert ruled == 0
        world.publisher.refusing.clear()
        await eventually(lambda: refused("later"), "the one that could not be published before")
        assert not await refused("endless")
