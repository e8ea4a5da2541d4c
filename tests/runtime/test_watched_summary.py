"""One line has what is watched and what is left out: when it is known first, and when it changes."""

from __future__ import annotations

from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import WatchSetting
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.watched_summary import EVERY
from tests.simulations.running_service import KEY, SETTINGS, World


async def test_what_is_watched_is_one_line_and_another_one_when_it_changes() -> None:
    world = World()
    left_out = {
        "ephemeral": ConsumerConfig(durable=False),
        "unacknowledged": ConsumerConfig(ack_policy="none"),
        "audit": ConsumerConfig(),
    }
    for name, config in left_out.items():
        world.js.add_consumer(ConsumerKey(KEY.stream, name), config)
    settings = replace(SETTINGS, watch=(WatchSetting("*", ("router*", "ephemeral", "un*")),))
    world.js.add_consumer(ConsumerKey(KEY.stream, "unnamed"), ConsumerConfig(durable=False))
    with capture_logs() as lines:
        async with world.living(settings):
            await world.clock.run(10)
            world.js.add_consumer(ConsumerKey(KEY.stream, "router-2"), ConsumerConfig())
            await world.clock.run(3 * EVERY)
    first, second = [line for line in lines if line["event"] == "watching"]
    counts = {"event": "watching", "log_level": "info", "streams": 1, "subjects": 1}
    out = {"ephemeral": 1, "not in watch": 1, "without acks": 1}
    assert first == counts | {"consumers": 2, "left_out": out}
    assert second == counts | {"consumers": 3, "left_out": out}
