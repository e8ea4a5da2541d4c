"""The state bucket and the events stream: the same statements on the fakes and on a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sidecar import render
from sidecar.core.changes import event_id
from sidecar.core.model import Event, EventType, Now, Status, StreamLook
from sidecar.core.rules import Policy
from sidecar.core.state import Record, SubjectState, Writing
from sidecar.edges.events import Announcer
from sidecar.edges.jetstream import JetStream
from sidecar.edges.resources import Resources, captors, command
from sidecar.edges.state_store import StateStore
from sidecar.ports import Conflict, SendConflict, Unavailable
from sidecar.settings import Settings
from sidecar.wire.subjects import Names, encode
from tests.conftest import StartServer
from tests.fakes.stores import FakeAnnouncer, FakeStateStore

NAMES = Names()
SUBJECT = "orders.*.created"


class Requests:
    """The connection as these edges see it; `lose` makes it forget the next answers after they were applied."""

    def __init__(self, nc: Client) -> None:
        self.nc, self.lose = nc, 0

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        reply = await self.nc.request(subject, payload, timeout=2, headers=headers)
        if self.lose and not subject.startswith("$JS."):
            self.lose -= 1
            raise Unavailable("the answer was lost")
        return reply


class Paper:
    """Just enough of a book to render a state."""

    settings = Settings()

    def interval(self, subject: str) -> float:
        return 0.1


def value(record: Record, nonce: str) -> bytes:
    state = SubjectState(subject=record.subject, policy=Policy(), deadline=0.0, record=record)
    return render.state_value(state, Writing(record, 0, nonce), Paper(), Now(1.0, 1.0))  # type: ignore[arg-type]


def event(seq: int, kind: EventType = EventType.ACTIVE, epoch: str = "e", to: Status = Status.ACTIVE) -> Event:
    return Event(
        id=event_id(SUBJECT, epoch, seq),
        type=kind,
        subject=SUBJECT,
        at=1_800_000_000.0,
        epoch=epoch,
        seq=seq,
        incident="e-1",
        was=Status.INACTIVE,
        now=to,
        reasons=("pending",),
        pressure=1.5,
        reading=None,
        marks=None,
        retry_after=30,
        admit_ratio=0.0,
    )


@asynccontextmanager
async def real(nc: Client) -> AsyncIterator[tuple[Requests, StateStore, Announcer]]:
    requests = Requests(nc)
    js = JetStream(requests)
    await Resources(js, NAMES, 1, 604_800, True).ensure()
    counted: list[str] = []
    store = StateStore(js, NAMES, "default", counted.append, lambda: nc)
    yield requests, store, Announcer(js, NAMES, "default", lambda e: render.event(e, "default", "here"))


@pytest.fixture(params=["fake", "real"])
async def stores(request: pytest.FixtureRequest, start_server: StartServer) -> AsyncIterator[tuple[Any, Any, Any]]:
    """(how to lose answers, or None on the fakes; state store; announcer)"""
    if request.param == "fake":
        yield None, FakeStateStore(), FakeAnnouncer()
        return
    server = await start_server()
    async with await nats.connect(server.url) as nc, real(nc) as found:
        yield found


Stores = tuple[Any, Any, Any]
RECORD = Record(SUBJECT, "e", seq=1, status=Status.ACTIVE, told=Status.ACTIVE, unsent=(event(1),))


async def test_what_was_written_is_read_back_whole(stores: Stores) -> None:
    _, store, _ = stores
    assert await store.load(SUBJECT) is None
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    found = await store.load(SUBJECT)
    assert (found.record, found.revision, found.nonce) == (RECORD, revision, "n1")
    assert (await store.load_all())[SUBJECT].record == RECORD


async def test_of_two_writers_one_wins(stores: Stores) -> None:
    _, store, _ = stores
    first = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.write(SUBJECT, value(RECORD, "n2"), first, "n2")
    with pytest.raises(Conflict):
        await store.write(SUBJECT, value(RECORD, "n3"), first, "n3")


async def test_a_write_that_was_applied_before_it_failed_is_recognised(stores: Stores) -> None:
    requests, store, _ = stores
    if requests is None:
        once = iter([True])
        store.faults.after = lambda: next(once, False)
    else:
        requests.lose = 1
    with pytest.raises(Unavailable):
        await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    assert (await store.load(SUBJECT)).revision == revision


async def test_a_removed_key_can_be_written_again(stores: Stores) -> None:
    _, store, _ = stores
    revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
    await store.remove(SUBJECT, revision)
    assert await store.load_all() == {}
    found = await store.load(SUBJECT)
    await store.write(SUBJECT, value(RECORD, "n2"), found.revision if found else 0, "n2")
    assert (await store.load(SUBJECT)).record == RECORD


async def test_an_event_is_told_once_however_often_it_is_sent(stores: Stores) -> None:
    _, _, announcer = stores
    assert await announcer.last(SUBJECT) is None
    for _ in range(3):
        await announcer.send(event(1))
    await announcer.send(event(2, EventType.RECOVERY, to=Status.INACTIVE))
    told = await announcer.last(SUBJECT)
    assert (told.seq, told.status, told.incident) == (2, Status.INACTIVE, None)


async def test_an_event_whose_answer_was_lost_is_not_told_twice(stores: Stores) -> None:
    requests, _, announcer = stores
    if requests is None:
        once = iter([True])
        announcer.faults.after = lambda: next(once, False)
    else:
        requests.lose = 1
    with pytest.raises(Unavailable):
        await announcer.send(event(1))
    await announcer.send(event(1))
    await announcer.send(event(2))
    assert (await announcer.last(SUBJECT)).seq == 2
    if requests is not None:
        info = await requests.nc.jetstream().stream_info(NAMES.events_stream)
        assert info.state.messages == 2


async def test_a_late_copy_of_an_old_event_is_refused(stores: Stores) -> None:
    _, _, announcer = stores
    await announcer.send(event(1))
    await announcer.send(event(2))
    with pytest.raises(SendConflict) as conflict:
        await announcer.send(event(1))
    assert conflict.value.seq == 2


async def test_the_last_word_is_the_newest_status_and_the_highest_seq(stores: Stores) -> None:
    _, _, announcer = stores
    await announcer.send(event(1))
    await announcer.send(event(2, EventType.MONITORING_LOST))
    told = await announcer.last(SUBJECT)
    assert (told.seq, told.status, told.incident) == (2, Status.ACTIVE, "e-1")


async def test_an_event_carries_its_id_and_cloudevents_headers(nc: Client) -> None:
    async with real(nc) as (_, _, announcer):
        await announcer.send(event(1))
        subject = f"backpressure.v1.event.backpressure_active.{encode(SUBJECT)}"
        message = await nc.jetstream().get_last_msg(NAMES.events_stream, subject)
        headers = message.headers or {}
        body = json.loads(message.data or b"")
        assert headers["Nats-Msg-Id"] == headers["ce-id"] == body["id"] == "orders.=2A.created:e:1"
        assert (headers["ce-source"], headers["ce-type"]) == (
            "/backpressure/default",
            "backpressure.v1.backpressure_active",
        )
        assert (headers["ce-specversion"], headers["ce-subject"]) == ("1.0", "orders.=2A.created")
        assert headers["ce-time"] == body["timestamp"] == "2027-01-15T08:00:00.000Z"
        assert (body["from"], body["to"]) == ("inactive", "active")


async def test_a_foreign_value_is_ignored_and_written_over(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        await kv.put(encode(SUBJECT), b"somebody was here")
        assert await store.load_all() == {}
        found = await store.load(SUBJECT)
        assert found is not None
        assert found.record is None
        await store.write(SUBJECT, value(RECORD, "n1"), found.revision, "n1")


async def test_every_key_of_many_is_loaded_and_heartbeats_are_none(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        for n in range(300):
            await store.write(f"s.{n}", value(msgspec.structs.replace(RECORD, subject=f"s.{n}"), "n"), 0, "n")
        await store.beat(b"{}")
        assert len(await store.load_all()) == 300


async def test_the_bucket_is_one_that_any_kv_client_reads(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        found = json.loads((await kv.get(encode(SUBJECT))).value or b"")
        assert (found["seq"], found["epoch"], found["nonce"]) == (1, "e", "n1")
        assert not {"policy", "recovery", "age_ms"} & found.keys()
        assert {"action", "would", "on_unknown", "hold_seconds", "unsent", "latches", "alerts"} <= found.keys()


async def test_an_existing_stream_with_other_settings_is_left_as_it_is(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"], max_msgs=77)
    async with real(nc):
        assert (await js.stream_info(NAMES.events_stream)).config.max_msgs == 77


async def test_a_stream_on_our_subjects_is_named(nc: Client) -> None:
    await nc.jetstream().add_stream(name="GREEDY", subjects=["backpressure.>"])
    with pytest.raises(Unavailable, match="overlap"):
        await Resources(JetStream(Requests(nc)), NAMES, 1, 604_800, True).ensure()


async def test_without_the_right_to_manage_nothing_is_made(nc: Client) -> None:
    with pytest.raises(Unavailable, match="BACKPRESSURE_EVENTS is missing"):
        await Resources(JetStream(Requests(nc)), NAMES, 1, 604_800, False).ensure()
    assert await nc.jetstream().streams_info() == []


def test_the_line_that_makes_it_names_everything() -> None:
    wanted = {
        "name": "BACKPRESSURE_EVENTS",
        "subjects": ["b.>"],
        "max_age": 10**9,
        "duplicate_window": 10**9,
        "num_replicas": 3,
    }
    assert command(wanted, NAMES).startswith("nats stream add BACKPRESSURE_EVENTS --subjects 'b.>'")


def test_a_stream_that_stores_a_subject_captures_it() -> None:
    looks = [
        StreamLook("A", "t", 0, 0, 0, ("a.>",)),
        StreamLook("B", "t", 0, 0, 0, ("a.b",)),
        StreamLook("C", "t", 0, 0, 0),
    ]
    assert captors(looks, "a.b", {"B"}) == ["A"]
