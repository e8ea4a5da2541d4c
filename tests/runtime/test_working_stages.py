"""A stage that was reported failing is reported working once it does, or once another replica does its work."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.core.reading.sharing import ALL_STREAMS, Position
from nats_backpressure.runtime.failures import AFTER, Failures
from nats_backpressure.runtime.noting_observer import NotingObserver
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.shared_reading import SharedReading
from tests.simulations.running_service import KEY, World

FIRST = Position(True, True, -1.0)
"""One that stands before this replica."""


class Denied:
    """An Observer whose requests fail from some moment on."""

    def __init__(self, world: World) -> None:
        self.js, self.denied = world.js, False

    def __getattr__(self, name: str) -> object:
        return self.refuse if self.denied else getattr(self.js, name)

    async def refuse(self, *args: object) -> None:
        raise Unavailable("the connection was replaced during the reading")


@pytest.mark.parametrize(
    ("stage", "others_read"),
    [("list streams", "all"), ("read consumers", "all"), ("list streams", "a part"), ("read consumers", "a part")],
)
async def test_what_another_replica_reads_in_place_of_this_one_is_reported_working(
    stage: str, others_read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    failures, shared = Failures(world.clock), SharedReading(world.clock, "own", 0.6)
    denied = Denied(world)
    looks, consumers = await world.js.streams(), await world.js.consumers(KEY.stream)
    monkeypatch.setattr(world, "js", NotingObserver(denied, failures))  # type: ignore[arg-type]
    with capture_logs() as lines:
        async with world.living(failures=failures, shared=shared) as service:
            await world.known(service)
            denied.denied = True
            await world.clock.run(2 * AFTER)
            for stream, shown in ((ALL_STREAMS, looks), (KEY.stream, consumers)):
                now = world.clock.now().mono
                received = replace(shown, partial=others_read == "a part")  # type: ignore[type-var]
                service.poller.receive(Received(stream, "another", FIRST, now, now, received))
            failures.report()
    said = [line["event"] for line in lines if line.get("stage") == stage]
    assert said == ["stage.failing", *(["stage.works"] if others_read == "all" else [])]
