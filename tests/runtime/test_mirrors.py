"""A mirror has the subjects of its origin, whatever happens to that."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.values import ConsumerKey, Status
from tests.simulations.running_service import SETTINGS, World
from tests.support.policies import entry

COPY, SUBJECT = ConsumerKey("COPY", "copies"), "orders.>"
OVERLOAD = 2_000
CALM = replace(
    SETTINGS, observe=Observe(), policies=(entry(">", pending={"warn": 10, "critical": 50, "overload": 100}),)
)


class Mirrored(World):
    """A stream and its mirror, whose consumer has no filter."""

    def __init__(self) -> None:
        super().__init__()
        self.js.add_stream("ORIGIN", (SUBJECT,))
        self.js.add_stream(COPY.stream, (SUBJECT,))
        self.js.all[COPY.stream].origin = "ORIGIN"
        self.js.add_consumer(COPY, ConsumerConfig())

    def types(self) -> list[str]:
        return [event.type.value for event in self.publisher.events if event.subject == SUBJECT]


@pytest.mark.parametrize("how", ["its node is down", "deleted"])
@pytest.mark.no_cover  # traced, it takes four times as long
async def test_what_happens_to_the_origin_is_nothing_that_happens_to_the_mirror(how: str) -> None:
    world = Mirrored()
    async with world.living(CALM) as service:
        world.js.publish(COPY.stream, "orders.x", OVERLOAD)
        await world.clock.until(lambda: "backpressure_active" in world.types(), "the overload")
        world.js.ack(COPY, *world.js.pull(COPY, OVERLOAD - 80))  # held by the release mark
        origin = world.js.all["ORIGIN"]
        if how == "deleted":
            del world.js.all["ORIGIN"]
        world.js.unlisted = {"ORIGIN"}
        await world.clock.run(12.0)
        world.js.unlisted = set()
        world.js.all["ORIGIN"] = origin
        await world.clock.run(30.0)
        member = service.registry.subjects[SUBJECT].members[COPY]
        assert member.reading is not None and (member.reading.pending, member.reading.backfilling) == (80, False)
        assert member.status > Status.INACTIVE and "monitoring_lost" not in world.types()
        assert len({event.incident for event in world.publisher.events if event.subject == SUBJECT}) == 1


async def test_a_mirror_is_watched_soon_after_its_origin_is_shown() -> None:
    world = Mirrored()
    world.js.unlisted = {"ORIGIN"}
    async with world.living(CALM) as service:
        world.js.publish(COPY.stream, "orders.x", OVERLOAD)
        await world.clock.run(90.0)
        assert SUBJECT not in service.registry.subjects
        world.js.unlisted = set()
        await world.clock.until(lambda: world.types() == ["backpressure_active"], "the overload", 10.0)
        member = service.registry.subjects[SUBJECT].members[COPY]
        assert member.reading is not None and not member.reading.backfilling
