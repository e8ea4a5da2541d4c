"""Messages that a real server drops before a consumer got them, in every way it can: how many are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import Retention
from nats_backpressure.core.signals.tracker import ConsumerTracker
from tests.simulations.both_servers import SETTLES_WITHIN
from tests.simulations.followed_consumer import C, Following, following
from tests.support.parts import NOT_WITH_THIS_SERVER
from tests.support.servers import NatsServer


@pytest.fixture
async def at(server: NatsServer) -> AsyncIterator[Following]:
    async with following(server) as followed:
        yield followed


async def lose(at: Following, holds: Callable[[Any], bool]) -> list[Reading]:
    """Readings until the server shows it in its consumer, and three more: it lets them know a moment later."""
    readings = []
    deadline = time.monotonic() + SETTLES_WITHIN
    while not readings or not holds(readings[-1]):
        assert time.monotonic() < deadline, readings[-1]
        await asyncio.sleep(0.01)
        readings.append(await at.read())
    return readings + [await at.read() for _ in range(3)]


def counted(readings: list[Reading]) -> int:
    assert not any(reading.purged for reading in readings)
    return sum(reading.lost for reading in readings)


EXPIRES = 3_000_000_000
"""Nanoseconds: longer than a busy machine takes to publish the backlog and read it twice."""
WHOLE = pytest.param((), id="no filter")
COVERING = pytest.param(("s.>",), id="a filter that covers the stream")
PART = pytest.param(("s.a",), id="a filter")
TWO = pytest.param(("s.a", "s.b"), id="two filters")
FILTERS = pytest.mark.parametrize("filters", [WHOLE, COVERING, PART, TWO])


@FILTERS
async def test_a_backlog_that_expires_is_lost_in_the_first_sample_that_shows_it(
    at: Following, filters: tuple[str, ...]
) -> None:
    await at.world.add_stream("S", "s.>", max_age=EXPIRES)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 120)
    await at.read(0.1)
    await at.read(0.1)
    readings = await lose(at, lambda reading: reading.pending == 0)
    assert counted(readings) == 120
    assert next(reading for reading in readings if reading.pending < 120).losing


@FILTERS
async def test_a_backlog_that_lower_limits_drop_is_lost(at: Following, filters: tuple[str, ...]) -> None:
    await at.world.add_stream("S", "s.>", max_msgs=150)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 120)
    await at.read()
    await at.world._api("STREAM.UPDATE.S", name="S", subjects=["s.>"], storage="memory", max_msgs=10)
    assert counted(await lose(at, lambda reading: reading.pending == 10)) == 110


@pytest.mark.parametrize("filters", [PART, TWO])
async def test_a_backlog_evicted_by_another_subject_is_lost(at: Following, filters: tuple[str, ...]) -> None:
    if len(filters) > 1 and not at.world.tells_time:
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: several filters came with 2.10")
    await at.world.add_stream("S", "s.>", max_msgs=150)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 120)
    await at.read()
    await at.world.publish("S", "s.c", 150)
    assert counted(await lose(at, lambda reading: reading.pending == 0)) == 120


@FILTERS
async def test_a_stream_at_its_limit_never_counts_more_losses_than_it_has(
    at: Following, filters: tuple[str, ...]
) -> None:
    await at.world.add_stream("S", "s.>", max_msgs=50)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 50)
    readings = [await at.read()]
    for _ in range(20):
        await at.world.publish("S", "s.a", 5)
        readings.append(await at.read(0.1))
    readings += await lose(at, lambda reading: reading.pending == 50)
    assert 50 <= counted(readings) <= 100


@FILTERS
async def test_a_message_that_a_worker_got_before_it_expired_is_not_lost(
    at: Following, filters: tuple[str, ...]
) -> None:
    await at.world.add_stream("S", "s.>", max_msgs=20)
    await at.world.add_consumer(C, *filters)
    readings = []
    for _ in range(15):
        await at.world.publish("S", "s.a", 10)
        readings.append(await at.read(0.1))
        await at.work(10)
        await at.world.publish("S", "s.c", 10) if filters == ("s.a",) else None
    readings += await lose(at, lambda reading: reading.pending == 0)
    assert (counted(readings), any(reading.losing for reading in readings)) == (0, False)


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
@pytest.mark.parametrize("filters", [WHOLE, PART])
@pytest.mark.parametrize("limits", [{}, {"max_age": 3_600_000_000_000}, {"max_msgs": 1000}], ids=str)
async def test_a_message_acked_between_the_sample_and_the_look_is_not_lost(
    at: Following, retention: str, filters: tuple[str, ...], limits: dict[str, int]
) -> None:
    await at.world.add_stream("S", "s.>", retention=Retention(retention), **limits)
    await at.world.add_consumer(C, *filters)

    async def traffic() -> None:
        await at.world.publish("S", "s.a", 5)
        await at.work(5)

    at.line.between = traffic
    readings = [await at.read(0.1) for _ in range(15)]
    assert (counted(readings), any(reading.losing for reading in readings)) == (0, False)


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_a_work_queue_that_expires_loses_undelivered_messages(at: Following, retention: str) -> None:
    await at.world.add_stream("S", "s.>", retention=Retention(retention), max_age=EXPIRES)
    await at.world.add_consumer(C, "s.a")
    await at.world.publish("S", "s.a", 40)
    await at.work(10)
    await at.read(0.1)
    await at.read(0.1)
    assert counted(await lose(at, lambda reading: reading.pending == 0)) == 30


@FILTERS
async def test_a_message_replaced_by_a_newer_one_is_not_lost(at: Following, filters: tuple[str, ...]) -> None:
    await at.world.add_stream("S", "s.>", max_msgs_per_subject=5, max_age=3_600_000_000_000)
    await at.world.add_consumer(C, *filters)
    readings = []
    for _ in range(10):
        await at.world.publish("S", "s.a", 4)
        readings.append(await at.read(0.1))
    readings += await lose(at, lambda reading: reading.pending == 5)
    assert (counted(readings), any(reading.losing for reading in readings)) == (0, False)


@FILTERS
@pytest.mark.parametrize("limits", [{}, {"max_age": 3_600_000_000_000}], ids=["without limits", "with an age limit"])
async def test_a_message_that_an_operator_purged_or_deleted_is_not_lost(
    at: Following, filters: tuple[str, ...], limits: dict[str, int]
) -> None:
    if limits and not at.world.tells_time:
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: 2.9 does not report its time, so any message may have been too old")
    await at.world.add_stream("S", "s.>", **limits)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 30)
    readings = [await at.read()]
    for seq in (1, 2, 17):
        await at.world.delete_message("S", seq)
        readings.append(await at.read())
    at.line.between = lambda: at.world.purge("S")
    readings.append(await at.read())
    at.line.between = None
    while readings[-1].pending:
        readings.append(await at.read())
    readings += [await at.read() for _ in range(3)]
    assert sum(reading.lost for reading in readings) == 0
    assert any(reading.purged for reading in readings)


@FILTERS
async def test_a_loss_between_two_readings_is_counted_by_the_next_one(at: Following, filters: tuple[str, ...]) -> None:
    await at.world.add_stream("S", "s.>", max_age=EXPIRES)
    await at.world.add_consumer(C, *filters)
    await at.world.publish("S", "s.a", 40)
    await at.read(0.1)
    account = (await at.read(0.1)).account
    await at.until(lambda sample: sample.pending == 0)
    at.track = ConsumerTracker(carried=Carried(account=account))
    assert counted([await at.read() for _ in range(4)]) == 40
    at.track = ConsumerTracker(carried=Carried(account=(await at.read()).account))
    assert counted([await at.read() for _ in range(4)]) == 0
