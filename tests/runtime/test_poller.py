"""What the sweep tells the core beside the samples: who appeared, and what was heard of whom."""

from __future__ import annotations

from nats_backpressure.core.model import ConsumerConfig, Reading
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.observations import Terminated
from nats_backpressure.runtime.service import Service
from tests.worlds.running_service import KEY, SUBJECT, World

OTHER = ConsumerKey(KEY.stream, "other")


async def reading_of(world: World, service: Service, key: ConsumerKey) -> Reading:
    def read() -> Reading | None:
        member = service.registry.subjects[SUBJECT].members.get(key)
        return member.reading if member else None

    found = await world.clock.until(read, f"a reading of {key.consumer}")
    assert isinstance(found, Reading)
    return found


async def test_only_who_was_not_there_before_has_appeared() -> None:
    world = World()
    world.load()
    async with world.living() as service:
        await world.known(service)
        assert not (await reading_of(world, service, KEY)).backfilling
        world.js.add_consumer(OTHER, ConsumerConfig())
        assert (await reading_of(world, service, OTHER)).backfilling


async def test_who_was_missing_from_a_list_has_not_appeared() -> None:
    world = World()
    world.load()
    world.js.add_consumer(OTHER, ConsumerConfig())
    world.js.hidden.add(OTHER)
    async with world.living() as service:
        await world.known(service)
        world.js.hidden.clear()
        assert not (await reading_of(world, service, OTHER)).backfilling


async def test_a_terminated_message_is_heard_of() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
        await reading_of(world, service, KEY)
        service.poller.hint(Terminated(KEY))

        def poison() -> bool:
            reading = service.registry.subjects[SUBJECT].members[KEY].reading
            return reading is not None and reading.diagnosis is Diagnosis.POISON

        await world.clock.until(poison, "the diagnosis")
