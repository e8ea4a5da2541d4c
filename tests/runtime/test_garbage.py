"""Old objects are not looked at again, new garbage is still found, and old garbage once there may be much of it."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncIterator

import pytest

from nats_backpressure.adapters.nats.api_types import ConsumerInfo
from nats_backpressure.core.model.marks import Marks
from nats_backpressure.core.model.member import Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.runtime import garbage
from nats_backpressure.runtime.garbage import EVERY, LONG, SETTLE, SOON, keep_collections_short
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeClock]:
    monkeypatch.setattr(garbage, "BLOCKS", 1000)
    before = gc.get_threshold()
    clock = FakeClock()
    task = asyncio.create_task(keep_collections_short(clock))
    await clock.run(0)
    yield clock
    await cancel_and_wait([task])
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


async def test_what_lasts_is_frozen_and_python_makes_no_full_collection(clock: FakeClock) -> None:
    frozen, lasting = gc.get_freeze_count(), [Node() for _ in range(1000)]
    await clock.run(EVERY)
    assert gc.get_freeze_count() >= frozen + len(lasting)
    assert gc.get_threshold()[2] >= 1_000_000


async def test_young_garbage_is_found(clock: FakeClock) -> None:
    node = Node()
    gone = weakref.ref(node)
    del node
    await clock.run(EVERY)
    assert gone() is None


@pytest.mark.parametrize(("took", "after"), [(0.0, EVERY), (LONG / 2, EVERY), (2 * LONG, SOON)])
async def test_after_a_long_collection_the_next_comes_sooner(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, took: float, after: float
) -> None:
    ended = list[float]()

    def collect(generation: int = 2) -> int:
        clock.advance(took)
        ended.append(clock.mono())
        return 0

    await clock.run(SETTLE)
    with monkeypatch.context() as patched:
        patched.setattr(gc, "collect", collect)
        await clock.run(4 * EVERY)
    assert ended[2] - ended[1] == pytest.approx(after + took)


async def test_while_subjects_are_loaded_collections_are_close_together(clock: FakeClock) -> None:
    frozen, lasting = gc.get_freeze_count(), [Node() for _ in range(1000)]
    await clock.run(SOON)
    assert gc.get_freeze_count() >= frozen + len(lasting)


async def test_garbage_among_what_is_frozen_is_found_when_it_has_grown(clock: FakeClock) -> None:
    node = Node()
    gone = weakref.ref(node)
    await clock.run(SETTLE)
    del node
    await clock.run(10 * EVERY)
    assert gone() is not None, "it is frozen, and nothing has grown"
    growth = [Node() for _ in range(sys.getallocatedblocks())]
    await clock.run(EVERY)
    assert gone() is None and growth


async def test_growth_at_the_start_makes_no_full_collection(clock: FakeClock) -> None:
    node = Node()
    gone = weakref.ref(node)
    await clock.run(EVERY)
    del node
    growth = [Node() for _ in range(sys.getallocatedblocks())]
    await clock.run(SETTLE)
    assert gone() is not None and growth


def test_what_each_sample_makes_is_never_looked_at() -> None:
    made = [Sample, ConsumerConfig, StreamLook, Reading, Member, Latches, Marks, SubjectState, Record, ConsumerInfo]
    assert [kind.__name__ for kind in made if kind.__struct_config__.gc] == []
