"""Reads the events stream: the newest first, by every filter, with few reads, on the fake and on a real server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import nats
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from nats_backpressure.adapters.nats import api, event_reader
from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.event_reader import READS, JetStreamEventReader, _EnoughRead, _Search
from nats_backpressure.protocol.patterns import encode
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent, EventQuery
from tests.conftest import StartServer
from tests.fakes.event_log import SUBJECT, T0, FakeEventLog, encoded_event
from tests.simulations.stored_samples import NAMES, Requests, publisher_of, real
from tests.simulations.stored_samples import event as concluded
from tests.support.background import meanwhile
from tests.support.parts import need_server
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually

KINDS = {"backpressure_active", "backpressure_warning", "recovery"}


DOCUMENTED = """
accounts {{ A {{ jetstream: enabled, users: [
  {{user: admin, password: a}}
  {{user: sidecar, password: s, permissions: {{
    publish: ["$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.CONSUMER.CREATE.BACKPRESSURE_EVENTS.>",
      "$JS.API.CONSUMER.MSG.NEXT.BACKPRESSURE_EVENTS.*"{direct}]
    subscribe: ["_INBOX.>"]}}}}
]}}}}
"""
DIRECT = ', "$JS.API.DIRECT.GET.BACKPRESSURE_EVENTS"'


class Counted(Requests):
    """A connection that counts what is asked."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self.asked: Counter[str] = Counter()
        self.refused = ""
        """Requests on subjects with this in them fail."""

    async def request(self, subject: str, *given: Any, **more: Any) -> Any:
        if self.refused and self.refused in subject:
            raise Unavailable(f"{subject}: no reply in time")
        self.asked[".".join(subject.split(".")[2:-1])] += 1
        return await super().request(subject, *given, **more)


class World(Protocol):
    async def publish(self, *payloads: bytes) -> None: ...
    @property
    def log(self) -> Any: ...


class FakeWorld:
    def __init__(self) -> None:
        self.log = FakeEventLog()

    async def publish(self, *payloads: bytes) -> None:
        self.log.stored += [event for payload in payloads if (event := parse_event(payload)) is not None]


class RealWorld:
    def __init__(self, nc: Client) -> None:
        self.nc, self.requests, self.counts = nc, Counted(nc), Counter[str]()
        self.log = self.another()

    def another(self) -> JetStreamEventReader:
        js, count = JetStreamApi(self.requests), lambda what: self.counts.update([what])
        return JetStreamEventReader(js, lambda: self.nc, NAMES, parse_event, count, SystemClock())

    async def publish(self, *payloads: bytes) -> None:
        js = self.nc.jetstream()
        for n in range(0, len(payloads), 100):
            await asyncio.gather(*[js.publish(subject_of(payload), payload) for payload in payloads[n : n + 100]])

    async def put(self, subject: str, *payloads: bytes) -> None:
        for payload in payloads:
            await self.nc.jetstream().publish(subject, payload)


def subject_of(payload: bytes) -> str:
    document = json.loads(payload)
    return f"backpressure.v1.event.{document['type']}.{encode(document['subject'])}"


@pytest.fixture(params=["fake", "batches", "singly"])
async def world(request: pytest.FixtureRequest, nc: Client) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    async with real(nc):
        world = RealWorld(nc)
        if request.param == "singly":
            world.log.batches.read_single()
        yield world


@pytest.fixture
async def stored(nc: Client) -> AsyncIterator[RealWorld]:
    """The stream itself, for what the fake does not have."""
    async with real(nc):
        yield RealWorld(nc)


def run(first: int, last: int, **more: Any) -> list[bytes]:
    """Events one second apart: active, warning, inactive in turn."""
    tos = ("active", "warning", "inactive")
    return [encoded_event(seq, T0 + 1000 * seq, tos[seq % 3], **more) for seq in range(first, last + 1)]


def seqs(events: Sequence[CachedEvent]) -> list[int]:
    return [event.seq for event in events]


def mixed(n: int) -> list[bytes]:
    """Ours, each after two of others."""
    others = [run(1, n, subject="orders.eu"), run(1, n, subject="orders.>")]
    return [payload for three in zip(*others, run(1, n), strict=True) for payload in three]


ASKED = {
    "all": (EventQuery(SUBJECT, 100), range(30, 0, -1)),
    "as many as there are": (EventQuery(SUBJECT, 30), range(30, 0, -1)),
    "since a moment, included": (EventQuery(SUBJECT, 100, since=T0 + 20_000), range(30, 19, -1)),
    "since the future": (EventQuery(SUBJECT, 100, since=T0 + 99_000), []),
    "until a moment, included": (EventQuery(SUBJECT, 100, until=T0 + 9_000), range(9, 0, -1)),
    "until the past": (EventQuery(SUBJECT, 100, until=T0 - 1), []),
    "between two moments": (EventQuery(SUBJECT, 100, since=T0 + 4_500, until=T0 + 7_500), [7, 6, 5]),
    "before a seq": (EventQuery(SUBJECT, 100, before=4), [3, 2, 1]),
    "before the first": (EventQuery(SUBJECT, 100, before=1), []),
    "one type": (EventQuery(SUBJECT, 100, frozenset({"recovery"})), range(29, 0, -3)),
    "two types": (EventQuery(SUBJECT, 3, frozenset({"recovery", "backpressure_active"})), None),
    "all the types there are": (EventQuery(SUBJECT, 100, frozenset(KINDS)), range(30, 0, -1)),
    "a type without events": (EventQuery(SUBJECT, 100, frozenset({"data_loss"})), []),
    "another subject": (EventQuery("orders.eu", 100, since=T0 + 29_000), [30, 29]),
    "a subject without events": (EventQuery("orders", 100), []),
}


@pytest.mark.parametrize(("wanted", "expected"), ASKED.values(), ids=ASKED.keys())
async def test_wanted_events_come_newest_first(world: World, wanted: EventQuery, expected: Any) -> None:
    await world.publish(*mixed(30))
    page = await world.log.older(wanted)
    if expected is None:
        assert seqs(page.events) == [30, 29, 27] and not page.whole
        return
    assert seqs(page.events) == list(expected) and page.whole
    assert all(event.subject == wanted.subject for event in page.events)


async def test_more_than_the_limit_is_marked_incomplete(world: World) -> None:
    await world.publish(*mixed(30))
    page = await world.log.older(EventQuery(SUBJECT, 29))
    assert seqs(page.events) == list(range(30, 1, -1)) and not page.whole


async def test_an_empty_stream_gives_an_empty_whole_page(world: World) -> None:
    page = await world.log.older(EventQuery(SUBJECT, 10))
    assert page.events == () and page.whole
    taken: list[CachedEvent] = []
    assert await world.log.recall(T0, 10, taken.append) == T0 and taken == []


async def test_pages_by_until_have_each_event(world: World) -> None:
    # Four to a moment: what follows from one sample is concluded at once.
    await world.publish(*[encoded_event(seq, T0 + 1000 * (seq // 4)) for seq in range(1, 60)])
    by_seq: dict[int, CachedEvent] = {}
    until: int | None = None
    for _ in range(30):
        page = await world.log.older(EventQuery(SUBJECT, 10, until=until))
        by_seq |= {event.seq: event for event in page.events}
        if page.whole:
            break
        until = page.events[-1].at
    assert sorted(by_seq) == list(range(1, 60))


async def test_recall_reads_all_subjects_in_order(world: World) -> None:
    await world.publish(*mixed(20))
    taken: list[CachedEvent] = []
    since = await world.log.recall(T0, 1000, taken.append)
    assert since == T0 and len(taken) == 60
    assert seqs([e for e in taken if e.subject == SUBJECT]) == list(range(1, 21))


async def test_recall_reads_the_newest_if_there_are_too_many(world: World) -> None:
    await world.publish(*mixed(20))
    taken: list[CachedEvent] = []
    since = await world.log.recall(T0, 12, taken.append)
    assert len(taken) == 12 and seqs([e for e in taken if e.subject == SUBJECT]) == [17, 18, 19, 20]
    assert since > T0


@pytest.mark.parametrize("direct", [True, False], ids=["in batches", "one by one"])
async def test_recall_does_without_consumers_where_they_are_refused(stored: RealWorld, direct: bool) -> None:
    await stored.publish(*mixed(20))
    taken: list[CachedEvent] = []
    stored.requests.refused = "CONSUMER.CREATE."
    for _ in range(event_reader.REFUSED_AFTER):
        with pytest.raises(Unavailable):
            await stored.log.recall(T0, 1000, taken.append)
    if not direct:
        stored.log.batches.read_single()
    assert await stored.log.recall(T0, 1000, taken.append) == T0 and len(taken) == 60
    stored.log._failed, taken = event_reader.REFUSED_AFTER, []
    assert await stored.log.recall(T0, 12, taken.append) > T0
    assert [e.seq for e in taken if e.subject == SUBJECT] == [17, 18, 19, 20] and len(taken) == 12
    stored.requests.refused = ""
    async with meanwhile(stored.log.follow(taken.append)):
        await stored.publish(encoded_event(21))

        async def followed() -> bool:
            return [event.seq for event in taken[12:]] == [21]

        await eventually(followed, "what is published after")


async def test_recall_with_many_pulls_is_complete(stored: RealWorld) -> None:
    await stored.publish(*run(1, 1234))
    taken: list[CachedEvent] = []
    await stored.log.recall(T0, 10_000, taken.append)
    assert seqs(taken) == list(range(1, 1235))


async def test_recall_starts_earlier_by_the_difference_of_clocks(
    stored: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored.publish(*run(1, 2))
    newest = await stored.nc.jetstream().get_msg(NAMES.events_stream, 2)
    at = round(1000 * newest.time.timestamp()) if newest.time else 0
    taken: list[CachedEvent] = []
    assert await stored.log.recall(at + 30_000, 10, taken.append) == at + 30_000 and seqs(taken) == [1, 2]
    taken.clear()
    await stored.log.recall(at + event_reader.SKEW + 30_000, 10, taken.append)
    assert taken == []


async def test_published_events_are_read_back(stored: RealWorld) -> None:
    publisher = publisher_of(stored.requests)
    for seq in (1, 2, 3):
        await publisher.publish(concluded(seq))
    page = await stored.log.older(EventQuery(SUBJECT, 10))
    assert seqs(page.events) == [3, 2, 1] and page.whole
    assert page.events[0].event().instance == "here"


JUNK = [b"", b"hello", b"\xff", b"[]", b'{"id": "x", "seq": 99999}', b"x" * 70_000]


@pytest.mark.parametrize("many", [True, False], ids=["batches", "singly"])
async def test_messages_of_other_programs_are_left_out_and_counted(stored: RealWorld, many: bool) -> None:
    if not many:
        stored.log.batches.read_single()
    ours = f"backpressure.v1.event.recovery.{encode(SUBJECT)}"
    await stored.put(ours, *JUNK)
    for payload in run(1, 5):
        await stored.publish(payload)
        await stored.put(
            ours, *JUNK, encoded_event(7, subject="orders.eu", to="inactive"), encoded_event(8, to="active")
        )
    page = await stored.log.older(EventQuery(SUBJECT, 10))
    assert seqs(page.events) == [5, 4, 3, 2, 1] and page.whole
    assert stored.counts == {"event_malformed": 6 * len(JUNK) + 5 * 2}
    for wanted, expected in (
        (EventQuery(SUBJECT, 10, before=3), [2, 1]),
        (EventQuery(SUBJECT, 1, until=T0 + 4_000), [4]),
    ):
        assert seqs((await stored.log.older(wanted)).events) == expected
    taken: list[CachedEvent] = []
    await stored.log.recall(T0, 1000, taken.append)
    assert seqs(taken) == [1, 2, 3, 4, 5]


async def test_after_a_purge_only_later_events_are_read(stored: RealWorld) -> None:
    await stored.publish(*mixed(20))
    await stored.nc.jetstream().purge_stream(NAMES.events_stream)
    assert await stored.log.older(EventQuery(SUBJECT, 10)) == await stored.log.older(EventQuery("nobody", 10))
    await stored.publish(*run(21, 23))
    page = await stored.log.older(EventQuery(SUBJECT, 10))
    assert seqs(page.events) == [23, 22, 21] and page.whole
    taken: list[CachedEvent] = []
    await stored.log.recall(T0, 100, taken.append)
    assert seqs(taken) == [21, 22, 23]


async def test_events_of_any_publisher_are_followed_after_a_recall(stored: RealWorld) -> None:
    await stored.publish(encoded_event(1))
    taken: list[int] = []
    await stored.log.recall(0, 100, lambda event: taken.append(event.seq))
    await stored.publish(encoded_event(2))
    async with meanwhile(stored.log.follow(lambda event: taken.append(event.seq))):
        await stored.publish(encoded_event(3))
        await stored.put(f"backpressure.v1.event.recovery.{encode(SUBJECT)}", b"no event")

        async def all_taken() -> bool:
            return taken == [1, 2, 3] and stored.counts["event_malformed"] == 1

        await eventually(all_taken, f"all three events, not {taken}")


async def test_a_missing_stream_is_empty(nc: Client) -> None:
    log = RealWorld(nc).log
    assert (await log.older(EventQuery(SUBJECT, 10))).events == ()
    assert await log.recall(T0, 10, lambda event: None) == T0


async def test_a_server_that_does_not_answer_is_unavailable(stored: RealWorld, server: NatsServer) -> None:
    await stored.nc.close()
    with pytest.raises(Unavailable):
        await stored.log.older(EventQuery(SUBJECT, 10))
    with pytest.raises(Unavailable):
        await stored.log.recall(T0, 10, lambda event: None)


async def test_a_query_creates_no_consumer(stored: RealWorld) -> None:
    await stored.publish(*mixed(20))
    await stored.log.older(EventQuery(SUBJECT, 10, until=T0 + 9000))
    assert (await stored.nc.jetstream().stream_info(NAMES.events_stream)).state.consumer_count == 0
    await stored.log.recall(T0, 10, lambda event: None)
    made = stored.requests.asked
    assert made[f"CONSUMER.CREATE.{NAMES.events_stream}"] == 2  # the first showed that there are too many


async def test_a_page_takes_few_requests(stored: RealWorld, server: NatsServer) -> None:
    need_server(server.version, (2, 11), "a batch")
    for n in range(5):
        await stored.publish(*run(100 * n + 1, 100 * n + 100), *run(500 * n + 1, 500 * n + 500, subject="orders.eu"))
    sent_before = sum(stored.nc.stats[k] for k in ("out_msgs",))
    page = await stored.log.older(EventQuery(SUBJECT, 300))
    assert len(page.events) == 300
    assert stored.nc.stats["out_msgs"] - sent_before < 30


async def test_without_batches_a_page_ends_at_the_limit_of_reads_and_the_next_continues(stored: RealWorld) -> None:
    stored.log.batches.read_single()
    await stored.publish(*run(1, 700))
    first = await stored.log.older(EventQuery(SUBJECT, 1000))
    assert not first.whole and 400 < len(first.events) <= READS
    assert seqs(first.events) == list(range(700, 700 - len(first.events), -1))
    assert sum(stored.requests.asked.values()) <= READS + 1
    second = await stored.log.older(EventQuery(SUBJECT, 1000, until=first.events[-1].at))
    assert second.whole and {*seqs(first.events), *seqs(second.events)} == set(range(1, 701))


async def test_a_full_page_is_no_larger_than_a_reply(stored: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "PAGE_BYTES", 10 * len(encoded_event(1)))
    await stored.publish(*run(1, 50))
    page = await stored.log.older(EventQuery(SUBJECT, 100))
    assert not page.whole and 9 < len(page.events) < 13


async def test_time_is_bounded_too(stored: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await stored.publish(*run(1, 5))
    monkeypatch.setattr(event_reader, "READ_WITHIN", -1.0)
    page = await stored.log.older(EventQuery(SUBJECT, 100))
    assert page.events == () and not page.whole


async def test_a_stream_without_direct_access_is_read_one_by_one(nc: Client) -> None:
    await nc.jetstream().add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"])
    world = RealWorld(nc)
    await world.publish(*run(1, 20))
    page = await world.log.older(EventQuery(SUBJECT, 100))
    assert seqs(page.events) == list(range(20, 0, -1)) and page.whole
    assert not world.log.batches.many


@pytest.mark.parametrize("direct", [True, False], ids=["as documented", "without direct access"])
async def test_the_documented_permissions_are_enough(
    start_server: StartServer, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BATCH_SILENCE", 0.2)
    server = await start_server(DOCUMENTED.format(direct=DIRECT if direct else ""))
    admin = await nats.connect(server.url, user="admin", password="a")
    sidecar = await nats.connect(server.url, user="sidecar", password="s", error_cb=ignore)
    async with real(admin):
        await RealWorld(admin).publish(*run(1, 20))
        log = RealWorld(sidecar).log
        assert seqs((await log.older(EventQuery(SUBJECT, 10))).events) == list(range(20, 10, -1))
        assert log.batches.many == (direct and server.version >= (2, 11))
        taken: list[CachedEvent] = []
        await log.recall(T0, 100, taken.append)
        assert len(taken) == 20
    await admin.close()
    await sidecar.close()


async def ignore(error: Exception) -> None:
    """nats-py would print it."""


class Shelf:
    """Messages of one subject in a long stream, read like BatchReader."""

    def __init__(self, places: dict[int, int], many: bool) -> None:
        self.places, self.many = sorted(places), many
        self.messages = {
            place: Message("s", place, encoded_event(seq, T0 + 1000 * seq), {}) for place, seq in places.items()
        }
        self.reads = 0

    async def next(self, subject: str, place: int, n: int) -> list[Message]:
        self.reads += 1
        matches = [self.messages[p] for p in self.places if p >= place]
        return matches[: n if self.many else 1]


layouts = st.lists(st.integers(1, 100_000) | st.integers(1, 9), max_size=120)


@given(layouts, st.booleans(), st.integers(1, 130), st.none() | st.integers(0, 121), st.none() | st.integers(0, 121))
@example([1] * 100 + [100_000], False, 5, None, None)
@example([100_000] + [1] * 100, False, 130, 50, 40)
async def test_the_newest_wanted_events_are_found_in_any_layout(
    gaps: list[int], many: bool, limit: int, until: int | None, before: int | None
) -> None:
    places = {}
    place = 0
    for seq, gap in enumerate(gaps, 1):
        place += gap
        places[place] = seq
    shelf = Shelf(places, many)
    wanted = EventQuery(SUBJECT, limit, until=None if until is None else T0 + 1000 * until, before=before)
    search = _Search(shelf, "s", wanted, lambda message: parse_event(message.data), SystemClock())  # type: ignore[arg-type]
    try:
        await search.run(1, place + 50_000)
        whole = True
    except _EnoughRead:
        whole = False
    last = min(len(gaps), len(gaps) if until is None else until, len(gaps) if before is None else before - 1)
    expected = list(range(last, 0, -1))
    assert seqs(search.matches) == expected[:limit] and whole == (len(expected) <= limit)
    assert shelf.reads < READS


@pytest.mark.parametrize("many", [True, False])
async def test_a_replica_whose_clock_is_behind_hides_no_event(many: bool) -> None:
    shelf = Shelf({1: 1, 2: 2, 3: 3}, many)
    for place, seconds in ((2, 20), (3, 17)):
        shelf.messages[place] = Message("s", place, encoded_event(place, T0 + 1000 * seconds), {})
    for wanted, expected in (
        (EventQuery(SUBJECT, 9, until=T0 + 18_000), [3, 1]),
        (EventQuery(SUBJECT, 9, since=T0 + 19_000), [2]),
    ):
        search = _Search(shelf, "s", wanted, lambda message: parse_event(message.data), SystemClock())  # type: ignore[arg-type]
        await search.run(1, 4)
        assert seqs(search.matches) == expected


async def test_after_a_reconnect_what_a_node_that_lagged_did_not_deliver_is_read() -> None:
    reader = JetStreamEventReader(None, None, NAMES, parse_event, print, SystemClock())  # type: ignore[arg-type]
    position = reader._follower.position
    position.start_at("born", 3)
    position.reach(10)  # the node seemed to have no more
    for position.is_other, expected in ((False, 3), (True, 0)):
        info = SimpleNamespace(created="born", state=SimpleNamespace(last_seq=12))
        assert await reader._position_in(info) == expected  # type: ignore[arg-type]


async def test_of_each_subject_the_newest_event_of_each_type_is_read_in_the_order_of_the_stream(
    stored: RealWorld,
) -> None:
    await stored.publish(*mixed(7))
    await stored.put("backpressure.v1.event.recovery.foreign", b"none of ours")
    taken: list[CachedEvent] = []
    await stored.log.newest(taken.append)
    assert [(event.subject, event.seq) for event in taken] == [
        (subject, seq) for seq in (5, 6, 7) for subject in ("orders.eu", "orders.>", SUBJECT)
    ]
    await stored.nc.jetstream().delete_stream(NAMES.events_stream)
    await stored.log.newest(pytest.fail)


async def test_newest_events_that_cannot_be_read_are_unavailable(stored: RealWorld) -> None:
    await stored.publish(*mixed(2))
    stored.requests.refused = "CONSUMER"
    with pytest.raises(Unavailable):
        await stored.log.newest(lambda event: None)
