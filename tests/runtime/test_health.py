"""The health of a running service: each of its values while all is well, and while something is not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import BadSettings, Settings
from nats_backpressure.core.model.member import Carried
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.health import Health, HealthCheck
from nats_backpressure.runtime.loop_lag import EVERY, measure_loop_lag
from nats_backpressure.runtime.readiness import ReadinessCheck
from nats_backpressure.runtime.service import Service
from tests.fakes.clock import FakeClock
from tests.simulations.running_service import KEY, SETTINGS, SUBJECT, World
from tests.support.background import meanwhile


def health(world: World, service: Service) -> Health:
    ready = ReadinessCheck(service.registry, world.clock, lambda: True)
    ready.serving = True
    return HealthCheck(service, ready, {"observe": lambda: True})(world.clock.now())


async def test_a_service_that_is_well() -> None:
    world = World()
    async with world.living() as service:
        assert not health(world, service).observing
        await world.known(service)
        await world.clock.run(5.0)
        now = health(world, service)
        assert now.connected == {"observe": True} and now.observing
        assert now.reading_age is not None and now.reading_age <= SETTINGS.observe.max_interval_ms / 1000
        assert now.heartbeat_age <= SETTINGS.publish.heartbeat_seconds + 0.5
        assert (now.write_delay, now.streams, now.consumers, now.left_out) == (0, 1, 1, {})
        assert 0 < now.interval <= SETTINGS.observe.max_interval_ms / 1000


@pytest.mark.no_cover  # traced, it takes four times as long
async def test_a_state_bucket_that_takes_nothing_shows_in_both_ages() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
        world.store.faults.before = lambda: True
        world.load()
        await world.clock.run(20.0)
        now = health(world, service)
        assert now.heartbeat_age >= 19 and now.write_delay >= 19
        world.store.faults.before = lambda: False
        await world.clock.run(10.0)
        assert health(world, service).write_delay == 0 and health(world, service).heartbeat_age < 3


async def test_a_service_that_never_stored_anything_shows_that_from_the_start() -> None:
    world = World()
    world.store.faults.before = lambda: True
    async with world.living() as service:
        await world.clock.run(20.0)
        assert health(world, service).heartbeat_age >= 19
        assert health(world, service).reading_age is None


async def test_the_settings_file_and_the_policies_that_are_refused() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
        started, bad = health(world, service), BadSettings([], [])

        def read() -> Settings:
            raise bad

        await world.clock.run(3.0)
        service.updates.reload(read)
        world.policies.put("other", b"no policy")
        await world.clock.run(0.1)
        now = health(world, service)
        assert not now.file_is_good and now.file_taken_at == started.file_taken_at
        assert now.policies_refused == 1
        service.updates.reload(lambda: SETTINGS)
        world.policies.put("other", b'{"mode": "observe"}')
        await world.clock.run(0.1)
        now = health(world, service)
        assert now.file_is_good and now.file_taken_at >= started.file_taken_at + 3
        assert now.policies_refused == 0


async def test_a_subject_is_gone_once_its_consumer_is_and_can_be_dismissed() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
        assert not service.registry.is_gone(SUBJECT) and not service.registry.dismiss(SUBJECT)
        world.js.delete_consumer(KEY)
        await world.clock.until(lambda: service.registry.is_gone(SUBJECT), "the consumer to be gone")
        await world.clock.run(1.0)
        assert service.registry.dismiss(SUBJECT)
        await world.clock.until(lambda: SUBJECT not in service.registry.subjects, "the subject to be dropped")
        assert SUBJECT not in world.store.values
        assert [event.type.value for event in world.publisher.events] == ["monitoring_lost"]


async def test_a_subject_whose_consumers_only_another_replica_watches_is_not_gone() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
        world.js.delete_consumer(KEY)
        await world.clock.until(lambda: service.registry.is_gone(SUBJECT), "the consumer to be gone")
        state = service.registry.subjects[SUBJECT]
        assert state.record is not None
        elsewhere = replace(state.record, carried=((ConsumerKey("T", "other"), Carried()),))
        service.registry.contexts.watches = lambda key: key == KEY
        service.registry.subjects[SUBJECT] = replace(state, record=elsewhere)
        assert not service.registry.is_gone(SUBJECT) and not service.registry.dismiss(SUBJECT)


async def test_after_a_restart_a_subject_is_gone_only_once_its_streams_were_read_whole() -> None:
    world = World()
    async with world.living() as service:
        await world.known(service)
    world.js.unreadable = {KEY}
    async with world.living() as service:
        await world.known(service)
        await world.clock.run(5.0)
        assert not service.registry.subjects[SUBJECT].members, "it cannot be read"
        assert not service.registry.is_gone(SUBJECT)
    world.js.unreadable = set()
    world.js.delete_consumer(KEY)
    async with world.living() as service:
        await world.known(service)
        await world.clock.until(lambda: service.registry.is_gone(SUBJECT), "the consumer to be known as gone")


async def test_loop_lag_is_how_late_the_newest_timer_was_once_a_second() -> None:
    clock, lags = FakeClock(), list[float]()
    lateness = iter([0.1, None, 0.0])
    clock.lateness = lambda: next(lateness)  # type: ignore[method-assign]
    async with meanwhile(measure_loop_lag(clock, lags.append)):
        await clock.run(3 * EVERY + 0.5)
    assert lags == [0.1, 0.0]
