"""The service on fakes and a fake clock: faults at each write that a real server cannot produce on demand."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace as replaced
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Observe, Publish
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.snapshot import PolicyValue
from nats_backpressure.protocol.messages import Heartbeat
from nats_backpressure.protocol.values import MONITORING_EVENTS, STATUS_EVENTS, ConsumerKey, EventType, Status
from nats_backpressure.runtime import slices
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.noting_observer import NotingObserver
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.reading_rounds import ROUND_WITHIN
from tests.fakes.clock import settled
from tests.simulations import stored_samples
from tests.simulations.running_service import KEY, SETTINGS, SUBJECT, World


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.no_cover  # traced, it takes four times as long
async def test_each_change_is_published_once_whatever_fails(seed: int) -> None:
    dice = random.Random(seed)
    world = World()
    for faults in (world.store.faults, world.publisher.faults):
        faults.before = faults.after = lambda: dice.random() < 0.25
    for life in range(3):
        (world.load if life % 2 == 0 else world.unload)()
        async with world.living():
            await world.clock.run(dice.uniform(0.0, 0.3))
    for faults in (world.store.faults, world.publisher.faults):
        faults.before = faults.after = lambda: False
    world.unload()
    async with world.living() as service:
        await world.known(service)
        await world.published(service, Status.INACTIVE)
        world.load()
        await world.published(service, Status.ACTIVE)
    events = world.publisher.events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    moves = [event for event in events if event.type in STATUS_EVENTS]
    assert all(a.now is b.was for a, b in pairwise(moves))
    assert moves[-1].now is Status.ACTIVE


async def test_what_waited_until_everything_was_read_again_is_written_at_once() -> None:
    world = World()
    async with world.living() as service:
        await world.published(service, Status.INACTIVE)
        world.store.is_current = False
        world.load()
        await world.clock.run(20.0)  # tries are up to 5 s apart by now
        assert not world.publisher.events
        world.store.is_current = True
        world.store.on_current()
        await world.clock.run(0.2)
        assert [event.now for event in world.publisher.events] == [Status.ACTIVE]


async def test_a_slow_list_of_one_stream_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_stream("STUCK", ("stuck",))
    world.js.add_consumer(ConsumerKey("STUCK", "c"), ConsumerConfig())
    consumers = world.js.consumers

    async def slow(stream: str, names: Any = ()) -> Any:
        if stream == "STUCK":
            await world.clock.sleep(60)
        return await consumers(stream, names)

    monkeypatch.setattr(world.js, "consumers", slow)
    async with world.living() as service:
        await world.published(service, Status.INACTIVE)
        world.load()
        await world.published(service, Status.ACTIVE)


async def test_members_missing_from_a_list_are_not_gone() -> None:
    world = World()
    async with world.living() as service:
        world.load()
        await world.published(service, Status.ACTIVE)
        world.js.hidden.add(KEY)
        await world.clock.run(1.3)  # beyond the second in which a consumer that is gone would be taken out
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
        await world.published(service, Status.ACTIVE)
        getattr(world.js, how).add(NEIGHBOUR)
        world.js.silent.add(NEIGHBOUR)
        world.js.delete_consumer(AUDIT)
        await world.published(service, Status.INACTIVE)
        members = service.registry.subjects[SUBJECT].members
        assert AUDIT not in members and NEIGHBOUR in members


async def test_one_member_that_does_not_answer_delays_no_other_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_consumer(AUDIT, ConsumerConfig())
    single = world.js.consumer

    async def slow(key: ConsumerKey) -> Any:
        await world.clock.sleep(60)
        return await single(key)

    monkeypatch.setattr(world.js, "consumer", slow)
    async with world.living(replaced(SETTINGS, observe=replaced(SETTINGS.observe, max_interval_ms=100))) as service:
        await world.published(service, Status.INACTIVE)
        world.js.hidden.add(AUDIT)
        await world.clock.run(0.3)
        world.load()
        await world.published(service, Status.ACTIVE)


def written(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every state that is written from now on: its subject and freshness."""
    pairs: list[tuple[str, str]] = []
    write = world.store.write

    async def noting(subject: str, value: bytes, expected: int, nonce: str) -> int:
        revision = await write(subject, value, expected, nonce)
        pairs.append((subject, json.loads(value)["freshness"]))
        return revision

    monkeypatch.setattr(world.store, "write", noting)
    return pairs


def unreadable(world: World, monkeypatch: pytest.MonkeyPatch, stream: str) -> set[str]:
    """The streams that cannot be read; put some in."""
    consumers, away = world.js.consumers, {stream}

    async def some(name: str, names: Any = ()) -> Any:
        if name in away:
            raise Unavailable("no right to list its consumers")
        return await consumers(name, names)

    monkeypatch.setattr(world.js, "consumers", some)
    return away


async def test_one_stream_that_cannot_be_read_ages_alone_and_is_written_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark",))
    world.js.add_consumer(ConsumerKey("DARK", "c"), ConsumerConfig())
    async with world.living() as service:
        await world.known(service)
        noted = written(world, monkeypatch)
        away = unreadable(world, monkeypatch, "DARK")

        def written_as(freshness: str) -> bool:
            return ("dark", freshness) in noted

        await world.clock.until(lambda: written_as("stale"), "the stale state")
        await world.clock.until(lambda: written_as("unknown"), "the unknown one")
        away.clear()
        await world.clock.until(lambda: written_as("known"), "it to be known again")
        assert [word for subject, word in noted if subject == "dark"].count("stale") == 1
        assert {word for subject, word in noted if subject == SUBJECT} <= {"known"}


async def test_an_outage_of_everything_writes_no_stale_states_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for n in range(30):
        world.js.add_stream(f"S{n}", (f"s.{n}",))
        world.js.add_consumer(ConsumerKey(f"S{n}", "c"), ConsumerConfig())
    async with world.living() as service:
        await world.known(service)
        noted = written(world, monkeypatch)
        world.js.down = "NATS is away"
        await world.clock.run(1.6)  # beyond the limit for stale, before that for unknown
        assert (
            service.registry.newest_read_at is not None and world.clock.now().mono - service.registry.newest_read_at > 1
        )
        world.js.down = None
        before = service.registry.newest_read_at

        def again() -> bool:
            return service.registry.newest_read_at != before

        await world.clock.until(again, "the heartbeat to move on")
        assert all(
            len({m.proof for m in state.members.values()} - {None}) for state in service.registry.subjects.values()
        )
        await world.clock.run(1.0)
        assert {word for _, word in noted} <= {"known"}


async def test_after_an_outage_the_heartbeat_waits_until_each_stream_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark",))
    world.js.add_consumer(ConsumerKey("DARK", "c"), ConsumerConfig())
    patient = replaced(SETTINGS, observe=replaced(SETTINGS.observe, unknown_after_seconds=10))
    async with world.living(patient) as service:
        await world.known(service)
        noted = written(world, monkeypatch)
        away = unreadable(world, monkeypatch, "DARK")
        away.add(KEY.stream)
        await world.clock.run(1.6)
        away.discard(KEY.stream)
        before = service.registry.newest_read_at

        def again() -> bool:
            return service.registry.newest_read_at != before

        await world.clock.until(again, "the heartbeat to move on")

        def stale() -> bool:
            return ("dark", "stale") in noted

        # As soon as the heartbeat would prove it: not a limit later.
        await world.clock.until(stale, "the stale state", 0.8)


async def test_a_list_of_streams_that_stays_incomplete_delays_the_first_answer_only_for_a_while() -> None:
    world = World()
    world.js.incomplete = True
    async with world.living() as service:
        await world.clock.until(service.known.is_set, "the first round", ROUND_WITHIN + 0.1)
        assert service.registry.subjects[SUBJECT].members and service.registry.unread("other")


async def test_of_a_stream_that_was_never_read_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.js.add_stream("DARK", ("dark.>",))
    unreadable(world, monkeypatch, "DARK")
    async with world.living() as service:
        await world.clock.until(service.known.is_set, "the first round", 3)
        assert [service.registry.unread(subject) for subject in ("dark.x", "dark.*", "light.x")] == [True, True, False]


async def test_others_have_turns_while_many_states_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 watched patterns took 9.5 s in one go."""
    monkeypatch.setattr(slices, "SLICE", 0.0)
    world = World()
    for n in range(300):
        name = f"tenant.{n}.*"
        record = Record(name, "e", 0, Status.INACTIVE, Status.INACTIVE, since=0.0)
        await world.store.write(name, stored_samples.value(record, "n"), 0, "n")
    async with world.living() as service:
        turns = 0
        while len(service.registry.subjects) < 300:
            await asyncio.sleep(0)
            turns += 1
        await settled()
        assert turns > 290
        assert list(service.registry.covering("tenant.7.a")) == ["tenant.7.*"]


async def test_states_that_cannot_be_loaded_are_reported_after_a_while_and_when_they_are() -> None:
    world = World()
    world.store.faults.before = lambda: True
    with capture_logs() as lines:
        async with world.living() as service:
            await world.clock.run(60)
            world.store.faults.before = lambda: False
            await world.known(service)
            await world.clock.run(1)
    reported = [(line["event"], line["stage"]) for line in lines if "stage" in line]
    assert reported == [("stage.failing", "load states"), ("stage.works", "load states")]


@pytest.mark.parametrize(("part", "stages"), [("store", {"write", "heartbeat"}), ("publisher", {"publish"})])
@pytest.mark.no_cover  # traced, it takes four times as long
async def test_what_cannot_be_written_is_reported_though_all_is_read(part: str, stages: set[str]) -> None:
    world = World()
    async with world.living() as service:
        await world.published(service, Status.INACTIVE)
        with capture_logs() as lines:
            getattr(world, part).faults.before = lambda: True
            world.load()
            await world.clock.run(12)
    failing = {line["stage"]: line for line in lines if line["event"] == "stage.failing"}
    assert failing.keys() == stages
    assert all(failing[stage]["of"] == [SUBJECT] for stage in stages - {"heartbeat"})
    assert all(line["cost"] and line["error"] for line in failing.values())


async def test_a_list_of_streams_that_is_denied_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    failures = Failures(world.clock)
    observer = NotingObserver(world.js, failures)

    async def denied() -> Any:
        raise Unavailable("Permissions Violation")

    monkeypatch.setattr(world.js, "streams", denied)
    monkeypatch.setattr(world, "js", observer)
    with capture_logs() as lines:
        async with world.living(failures=failures):
            await world.clock.run(30)
    assert [line["stage"] for line in lines if line["event"] == "stage.failing"] == ["list streams"]


async def test_nothing_is_answered_while_the_first_states_cannot_be_stored() -> None:
    world = World()
    world.store.faults.before = lambda: True
    async with world.living() as service:
        await world.clock.run(0.2)
        assert service.registry.newest_read_at is None
    assert world.publisher.events == []


async def test_an_event_that_can_never_be_published_stops_none_after_it() -> None:
    world = World()
    world.publisher.impossible = lambda subject, kind: kind is EventType.ALERT_FIRING
    async with world.living() as service:
        world.load()
        await world.published(service, Status.ACTIVE)
        world.unload()
        await world.published(service, Status.INACTIVE)
    events = world.publisher.events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events if event.type in STATUS_EVENTS] == [EventType.ACTIVE, EventType.RECOVERY]


async def test_one_rejection_that_cannot_be_published_delays_no_other() -> None:
    world = World()
    world.publisher.impossible = lambda subject, kind: subject == "endless"
    world.publisher.refusing.add("later")
    for key in ("endless", "later", "bad"):
        world.policies.entries[key] = PolicyValue(b"{", 1)
    async with world.living() as service:
        await world.known(service)

        def refused(key: str) -> bool:
            return key in {event.subject for event in world.publisher.events}

        await world.clock.until(lambda: refused("bad"), "the one that can be published")
        ruled = 0
        rule = service.registry.apply_policies

        def counting(subject: str) -> None:
            nonlocal ruled
            ruled += 1
            rule(subject)

        service.registry.apply_policies = counting  # type: ignore[method-assign]
        await world.clock.run(0.5)
        assert ruled == 0
        world.publisher.refusing.clear()
        await world.clock.until(lambda: refused("later"), "the one that could not be published before")
        assert not refused("endless")


SETTINGS_OF_A_DAY = replaced(
    SETTINGS,
    observe=Observe(
        min_interval_ms=60_000, max_interval_ms=60_000, stale_after_seconds=600, unknown_after_seconds=1200
    ),
    publish=Publish(heartbeat_seconds=60),
    policies=(PolicyEntry((">",), ("*",), (("pending.warn", 1), ("pending.critical", 2), ("pending.overload", 3))),),
)


@pytest.mark.slow
async def test_a_day_of_outages() -> None:
    """Every hour NATS is away for a while, and the load comes and goes: each change is published once, in order."""
    world = World()
    with capture_logs():  # they are thousands of lines
        async with world.living(SETTINGS_OF_A_DAY, tick=30, discover_every=60) as service:
            await world.known(service)
            for hour in range(24):
                busy = hour % 2 == 0
                status = Status.ACTIVE if busy else Status.INACTIVE
                world.load(10) if busy else world.unload()
                await world.clock.run(900)
                await world.published(service, status)
                world.js.down = "NATS is away"
                for faults in (world.store.faults, world.publisher.faults):
                    faults.before = lambda: True
                await world.clock.run(60 * hour)
                for faults in (world.store.faults, world.publisher.faults):
                    faults.before = lambda: False
                world.js.down = None
                await world.clock.run(3600 - 900 - 60 * hour)
    events = world.publisher.events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    moves = [event for event in events if event.type in STATUS_EVENTS]
    assert all(a.now is b.was for a, b in pairwise(moves))
    assert [event.now for event in moves if event.now is not Status.WARNING] == [Status.ACTIVE, Status.INACTIVE] * 12
    lost = [event.type for event in events if event.type in MONITORING_EVENTS]
    assert lost == [EventType.MONITORING_LOST, EventType.MONITORING_RESTORED] * (len(lost) // 2) and lost


async def test_a_record_of_a_newer_version_stays_while_its_heartbeats_come_and_is_replaced_after_them() -> None:
    world = World()
    world.load()
    async with world.living() as service:
        await world.published(service, Status.ACTIVE)
    state = json.loads(world.store.values[SUBJECT][0])
    newer = json.dumps(state | {"schema": 2, "record": "of another form"}).encode()
    await world.store.write(SUBJECT, newer, world.store.values[SUBJECT][1], "n")
    count = len(world.publisher.events)
    world.unload()
    async with world.living() as service:
        for _ in range(120):
            world.store.on_heartbeat(Heartbeat(schema=2, instance="newer"))
            await world.clock.run(SETTINGS.observe.unknown_after_seconds / 2)
        answered = service.registry.subjects[SUBJECT].record
        assert answered is not None and (answered.status, answered.seq) == (Status.ACTIVE, state["seq"])
        assert world.store.values[SUBJECT][0] == newer and len(world.publisher.events) == count
        await world.clock.run(SETTINGS.observe.unknown_after_seconds + 5)
        await world.published(service, Status.INACTIVE)
    replaced_state = json.loads(world.store.values[SUBJECT][0])
    assert (replaced_state["schema"], replaced_state["status"]) == (1, "inactive")
    assert [event.seq for event in world.publisher.events] == list(range(1, len(world.publisher.events) + 1))
