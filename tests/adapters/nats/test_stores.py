"""The state bucket and the events stream: the same tests on the fakes and on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest

from nats_backpressure.policy.schema import Rejection
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.runtime.ports import Conflict, PublishConflict, Stored, Unavailable
from tests.conftest import StartServer
from tests.fakes.stores import FakeEventPublisher, FakeStateStore
from tests.simulations.stored_samples import NAMES, RECORD, SUBJECT, Requests, event, real, value
from tests.support.background import meanwhile
from tests.support.sidecar import eventually


@pytest.fixture(params=["fake", "real"])
async def stores(request: pytest.FixtureRequest, start_server: StartServer) -> AsyncIterator[tuple[Any, Any, Any]]:
    """(how to lose answers, or None on the fakes; state store; publisher)"""
    if request.param == "fake":
        yield None, FakeStateStore(), FakeEventPublisher()
        return
    server = await start_server()
    async with await nats.connect(server.url) as nc, real(nc) as adapters:
        yield adapters


Stores = tuple[Any, Any, Any]


def lose_one(requests: Requests | None, fake: Any) -> None:
    """The next write is applied, and its answer is lost."""
    if requests is not None:
        requests.lose = 1
        return
    once = iter([True])
    fake.faults.after = lambda: next(once, False)


async def test_a_written_record_is_read_back_whole(stores: Stores) -> None:
    _, store, _ = stores
    assert await store.load(SUBJECT) is None
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    stored = await store.load(SUBJECT)
    assert (stored.record, stored.revision, stored.nonce) == (RECORD, revision, "n1")
    assert (await store.load_all())[SUBJECT].record == RECORD


async def test_of_two_writers_one_wins(stores: Stores) -> None:
    _, store, _ = stores
    first = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.write(SUBJECT, value(RECORD, "n2"), first, "n2")
    with pytest.raises(Conflict):
        await store.write(SUBJECT, value(RECORD, "n3"), first, "n3")


async def test_a_write_that_was_applied_before_it_failed_is_recognised(stores: Stores) -> None:
    requests, store, _ = stores
    lose_one(requests, store)
    with pytest.raises(Unavailable):
        await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    assert (await store.load(SUBJECT)).revision == revision


async def test_a_removed_key_can_be_written_again(stores: Stores) -> None:
    _, store, _ = stores
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.remove(SUBJECT, revision)
    assert await store.load_all() == {}
    stored = await store.load(SUBJECT)
    await store.write(SUBJECT, value(RECORD, "n2"), stored.revision if stored else 0, "n2")
    assert (await store.load(SUBJECT)).record == RECORD


async def test_an_event_is_stored_once_however_often_it_is_published(stores: Stores) -> None:
    _, _, publisher = stores
    assert await publisher.last(SUBJECT) is None
    for _ in range(3):
        await publisher.publish(event(1))
    await publisher.publish(event(2, EventType.RECOVERY, to=Status.INACTIVE))
    last = await publisher.last(SUBJECT)
    assert (last.seq, last.status, last.incident) == (2, Status.INACTIVE, None)


async def test_an_event_whose_ack_was_lost_is_not_stored_twice(stores: Stores) -> None:
    requests, _, publisher = stores
    lose_one(requests, publisher)
    with pytest.raises(Unavailable):
        await publisher.publish(event(1))
    await publisher.publish(event(1))
    await publisher.publish(event(2))
    assert (await publisher.last(SUBJECT)).seq == 2
    if requests is not None:
        info = await requests.nc.jetstream().stream_info(NAMES.events_stream)
        assert info.state.messages == 2


async def test_an_event_that_a_dead_process_published_is_not_stored_again(stores: Stores) -> None:
    _, _, publisher = stores
    listed = [event(1), event(2, EventType.RECOVERY, to=Status.INACTIVE), event(3), event(4, EventType.DATA_LOSS)]
    for each in listed + listed:
        await publisher.publish(each)
    await publisher.publish(event(5, EventType.RECOVERY, to=Status.INACTIVE))
    assert (await publisher.last(SUBJECT)).seq == 5


async def test_an_event_behind_one_of_another_program_is_a_conflict(stores: Stores) -> None:
    _, _, publisher = stores
    await publisher.publish(event(1))
    await publisher.publish(event(2, EventType.RECOVERY, epoch="f", to=Status.INACTIVE))
    for late in (event(2), event(2, EventType.RECOVERY), event(1, epoch="f")):
        with pytest.raises(PublishConflict) as conflict:
            await publisher.publish(late)
        assert conflict.value.seq == 2


async def test_another_change_under_an_id_that_was_used_is_a_conflict(stores: Stores) -> None:
    _, _, publisher = stores
    await publisher.publish(event(1))
    with pytest.raises(PublishConflict) as conflict:
        await publisher.publish(msgspec.structs.replace(event(1), at=1_800_000_001.0))
    assert conflict.value.seq == 1


async def test_a_removal_whose_reply_was_lost_is_done(stores: Stores) -> None:
    requests, store, _ = stores
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    lose_one(requests, store)
    with pytest.raises(Unavailable):
        await store.remove(SUBJECT, revision)
    await store.remove(SUBJECT, revision)
    with pytest.raises(Conflict):
        await store.write(SUBJECT, value(RECORD, "n2"), revision, "n2")


async def test_a_record_that_another_program_wrote_meanwhile_is_not_removed(stores: Stores) -> None:
    _, store, _ = stores
    first = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.write(SUBJECT, value(RECORD, "n2"), first, "n2")
    with pytest.raises(Conflict):
        await store.remove(SUBJECT, first)
    assert (await store.load(SUBJECT)).nonce == "n2"


async def test_the_last_event_has_the_newest_status_and_the_highest_seq(stores: Stores) -> None:
    _, _, publisher = stores
    await publisher.publish(event(1))
    await publisher.publish(event(2, EventType.MONITORING_LOST))
    last = await publisher.last(SUBJECT)
    assert (last.seq, last.status, last.incident, last.lost) == (2, Status.ACTIVE, "e-1", True)
    await publisher.publish(event(3, EventType.MONITORING_RESTORED))
    assert not (await publisher.last(SUBJECT)).lost


async def test_a_rejected_policy_under_an_unwatched_key_is_published_once(stores: Stores) -> None:
    requests, _, publisher = stores
    first, second = (Rejection(f"created:{n}", (("pending.warn", "must not be above critical"),)) for n in (7, 9))
    lose_one(requests, publisher)
    with pytest.raises(Unavailable):
        await publisher.publish_rejection("orders.>", first, 1_800_000_000.0)
    await publisher.publish_rejection("orders.>", first, 1_800_000_001.0)
    assert (await publisher.last("orders.>")).seq == 1
    await publisher.publish_rejection("orders.>", second, 1_800_000_002.0)
    last = await publisher.last("orders.>")
    assert (last.seq, last.status, last.incident) == (2, Status.INACTIVE, None)


async def test_a_rejected_policy_that_a_late_replica_reports_after_a_newer_one_is_published_no_second_time(
    stores: Stores,
) -> None:
    _, _, publisher = stores
    newest = [("created:7", 1), ("created:9", 2), ("created:7", 2), ("created:8", 2), ("created:9:unread", 2)]
    unread = [("created:10:unread", 3), ("created:10", 4), ("created:10:unread", 4)]
    for n, (mark, seq) in enumerate([*newest, *unread, ("again:7", 5), ("of the file", 6)]):
        refused = Rejection(mark, (("pending.warn", "must not be above critical"),))
        await publisher.publish_rejection("orders.>", refused, 1_800_000_000.0 + n)
        assert (await publisher.last("orders.>")).seq == seq, mark


async def test_what_others_store_is_followed_and_what_is_not_a_record_too(stores: Stores) -> None:
    requests, store, _ = stores
    taken: list[tuple[str, Stored]] = []
    own = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.load_all()
    async with meanwhile(store.follow(lambda subject, stored: taken.append((subject, stored)))):

        async def put(payload: bytes) -> None:
            if requests is None:
                store.put(SUBJECT, payload)
            else:
                await requests.nc.jetstream().publish(f"$KV.{NAMES.state_bucket}.{encode(SUBJECT)}", payload)

        async def took(n: int) -> None:
            async def enough() -> bool:
                return len(taken) == n

            await eventually(enough, f"{n} writes")

        await asyncio.sleep(0)
        await put(value(RECORD, "n2"))
        await took(1)
        await put(b"garbage")
        await took(2)
        assert [subject for subject, _ in taken] == [SUBJECT, SUBJECT]
        assert [stored.revision for _, stored in taken] == [own + 1, own + 2]
        assert (taken[0][1].record, taken[0][1].nonce, taken[1][1].record) == (RECORD, "n2", None)
