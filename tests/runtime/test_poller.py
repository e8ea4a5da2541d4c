"""What the sweep tells the core beside the samples: who appeared, and what was heard of whom."""

from __future__ import annotations

from nats_backpressure.core.model import ConsumerConfig, Reading
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.observations import Terminated
from nats_backpressure.runtime.service import Service
from tests.runtime.test_service import KEY, SUBJECT, World
from tests.support.sidecar import eventually

OTHER = ConsumerKey(KEY.stream, "other")


async def reading_of(service: Service, key: ConsumerKey) -> Reading:
    async def read() -> Reading | None:
        member = service.registry.subjects[SUBJECT].members.get(key)
        return member.reading if member else None

    found = await eventually(read, f"a reading of {key.consumer}")
    assert isinstance(found, Reading)
    return found


async def test_only_who_was_not_there_before_has_appeared() -> None:
    world = World()
    world.load()
    async with world.living() as service:
        await service.known.wait()
        assert not (await reading_of(service, KEY)).backfilling
        world.js.add_consumer(OTHER, ConsumerConfig())
        assert (await reading_of(service, OTHER)).backfilling


async def test_who_was_missing_from_a_list_has_not_appeared() -> None:
    world = World()
    world.load()
    world.js.add_consumer(OTHER, ConsumerConfig())
    world.js.hidden.add(OTHER)
    async with world.living() as service:
        await service.known.wait()
        world.js.hidden.clear()
        assert not (await reading_of(service, OTHER)).backfilling


async def test_a_terminated_message_is_heard_of() -> None:
    world = World()
    async with world.living() as service:
        await service.known.wait()
        await reading_of(service, KEY)
        service.poller.hint(Terminated(KEY))

        async def poison() -> bool:
            return (await reading_of(service, KEY)).diagnosis is Diagnosis.POISON

        await eventually(poison, "the diagnosis")
