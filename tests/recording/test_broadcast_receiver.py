"""What comes from other replicas: what is used of it, when, and with which times; and that it holds nobody up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.reading.sharing import ALL_STREAMS, Position, share_of
from nats_backpressure.recording import broadcast_receiver
from nats_backpressure.recording.broadcast_encoder import ReadingEncoder
from nats_backpressure.recording.broadcast_format import (
    VERSION,
    BodyLine,
    BroadcastLine,
    ListLine,
    LookLine,
    UnreadLine,
    chunks_of,
    stream_of,
    topic_of,
)
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.broadcast_receiver import UNUSED_FOR, BroadcastReceiver
from nats_backpressure.recording.format import (
    LONGEST_LINE,
    ConsumerLine,
    ReadLine,
    SampleLine,
    StreamLine,
    StreamNumbers,
)
from nats_backpressure.runtime.observations import ConsumersReading, Received
from tests.fakes.clock import FakeClock, settled
from tests.recording.observations import now, sample, seen
from tests.recording.stepping_clock import SteppingClock
from tests.recording.test_broadcast import HERE, WHOLE_EVERY, sent
from tests.support.background import meanwhile

HEADER = b'{"t":"broadcast","version":1,"sender":"x","sent":1,"n":0,"rests":0}'


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b'{"t":"broadcast","version":2,"sender":"x","sent":1,"n":0,"rests":0}',
        b'{"t":"broadcast","version":1,"sender":"x","sent":1,"n":0,"rests":1}',
        b'{"t":"broadcast","version":1,"sender":"x","sent":1,"n":0,"rests":0,"part":1000}',
        b'{"t":"broadcast","version":1,"sender":"x","sent":1,"n":0,"rests":0,"part":1}\n{"t":"list"}\n',
        HEADER,
        HEADER + b'\n{"t":"list"}',
        HEADER + b'\n{"t":"sample","c":1}\n',
        HEADER + b'\n{"t":"sample","c":"1"}\n',
        HEADER + b'\n{"t":"read","s":0,"at":"never"}\n',
        HEADER + b'\n{"t":"new"}\n',
        HEADER + b'\n{"t":"stream","s":"0"}\n{"t":"list"}\n',
        HEADER + b'\n{"s":0}\n{"t":"list"}\n',
        HEADER + b'\nnot JSON\n{"t":"list"}\n',
        HEADER + b"\nnot JSON\n",
        HEADER + b'\n["t","new"]\n',
        HEADER + b'\n{"t":"read","s":0,"at":[1,1]}\n',
        HEADER + b'\n{"t":"stream","s":1,"name":"S","created":""}\n{"t":"read","s":1,"at":[1,1]}\n',
        HEADER + b'\n{"t":"stream","s":0,"name":"T","created":""}\n{"t":"read","s":0,"at":[1,1]}\n',
        HEADER + b'\n{"t":"list"}\n',
    ],
)
async def test_what_cannot_be_read_is_counted(payload: bytes) -> None:
    counted: list[str] = []
    receiver = BroadcastReceiver(FakeClock(), "me", lambda received: pytest.fail("used"), counted.append)
    async with meanwhile(receiver.run()):
        for _ in range(2):
            receiver.receive("reading.S", payload)
            await settled()
    assert counted == ["reading_unusable"] * 2


numbers = st.integers(0, 2)
numbers_left = st.lists(numbers, max_size=2).map(tuple)
times = st.tuples(st.floats(0, 100), st.floats(0, 100))
lines = st.one_of(
    st.builds(StreamLine, numbers, st.sampled_from(["S", "S", "S", "T"]), st.just("t")),
    st.builds(ConsumerLine, numbers, numbers, st.sampled_from(["a", "b"]), st.just("t")),
    st.builds(SampleLine, numbers, st.floats(0, 100), st.one_of(st.none(), st.none(), times)),
    st.builds(LookLine, numbers, st.builds(StreamNumbers, numbers)),
    st.just(UnreadLine(("a",), ("b",))),
)
ends = st.one_of(
    st.builds(ReadLine, numbers, times, st.none(), numbers_left, numbers_left, st.booleans(), st.booleans()),
    st.builds(ListLine, numbers_left, st.booleans(), st.booleans()),
)
FIRST = (StreamLine(0, "S", "t"), ConsumerLine(0, 0, "a", "t"), ConsumerLine(1, 0, "b", "t"))
bodies = st.tuples(st.sampled_from([(), FIRST, FIRST]), st.lists(lines, max_size=4)).map(lambda two: [*two[0], *two[1]])
messages = st.tuples(st.sampled_from(["S", "S", ALL_STREAMS]), st.booleans(), bodies, ends)


@given(st.lists(messages, max_size=6))
def test_lines_in_any_order_are_used_or_counted(sequence: list[tuple[str, bool, list[BodyLine], BodyLine]]) -> None:
    async def scenario() -> None:
        between = Between()
        for sent_at in (0.0, 1.0):
            between.receiver.add_report("x", sent_at)
        async with meanwhile(between.receiver.run()):
            for n, (stream, whole, body, end) in enumerate(sequence):
                header = BroadcastLine(VERSION, "x", 1.0, n, n if whole else 0, base=StreamNumbers() if whole else None)
                payload = b"".join(msgspec.json.encode(line) + b"\n" for line in (header, *body, end))
                between.receiver.receive(topic_of(stream), payload)
                await settled()
                assert len(between.received) + len(between.counted) == n + 1

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", ["S", "a_b-c", "with=sign", "ü", ALL_STREAMS])
def test_every_stream_has_a_topic(stream: str) -> None:
    assert stream_of(topic_of(stream)) == stream


class Between:
    """A sender and a receiver whose monotonic clocks differ."""

    def __init__(self) -> None:
        self.clock = FakeClock(mono=50_000.0)
        self.received: list[Received] = []
        self.counted: list[str] = []
        self.new: list[str] = []
        self.believed = self.wanted = True
        self.answered_at = math.inf
        """When the last round trip began."""
        self.receiver = BroadcastReceiver(
            self.clock,
            "me",
            self.received.append,
            self.counted.append,
            self.new.append,
            believes=lambda: self.believed,
            listening_time=lambda since: max(0.0, self.answered_at - since),
            wants=lambda stream, position: self.wanted,
        )
        self.encoder = ReadingEncoder("them", WHOLE_EVERY)

    def send(self, at: float, consumers: int = 1) -> Callable[[float], None]:
        """Send a reading `at` the sender's time; the result lets it arrive at a time of the receiver."""
        read = seen(*(sample(at, f"c{n}", pending=n) for n in range(consumers)))
        chunks = sent(self.encoder.reading(read, AskedFor(now(at).mono - 0.01), HERE, now(at)))

        def arrive(after: float) -> None:
            self.clock.advance(50_000.0 + after - self.clock.now().mono)
            for chunk in chunks:
                self.receiver.receive(topic_of("S"), chunk)

        return arrive

    async def exchange(self, at: float, after: float | None = None) -> None:
        """One reading is sent, comes, and is decoded."""
        self.send(at)(at if after is None else after)
        await settled()


@pytest.fixture
async def between() -> AsyncIterator[Between]:
    between = Between()
    async with meanwhile(between.receiver.run()):
        yield between


async def test_the_first_message_of_a_sender_only_shows_its_time(between: Between) -> None:
    await between.exchange(0.0)
    assert (between.received, between.counted, between.new) == ([], [], ["them"])
    await between.exchange(0.1)
    assert len(between.received) == 1


async def test_what_waited_on_its_way_from_a_new_sender_is_not_used_before_a_round_trip(between: Between) -> None:
    between.answered_at = 50_007.0
    for n in range(8):
        await between.exchange(float(n), after=8.0)
    assert between.received == [], "the last answer was asked for before all of these came"
    between.answered_at = 50_008.1
    await between.exchange(8.2)
    assert [round(one.sent_at - 50_000.0, 3) for one in between.received] == [8.2]


async def test_reports_of_presence_relate_the_clocks_before_anything_is_read(between: Between) -> None:
    for at in (1.0, 2.0, 3.0):
        between.clock.advance(1.0)
        between.receiver.add_report("them", now(at).mono)
    await between.exchange(3.5, after=9.0)
    assert [round(one.sent_at - 50_000.0, 3) for one in between.received] == [3.5], "it is as old as it is"


async def test_a_late_message_is_as_old_as_it_is(between: Between) -> None:
    for at in (0.0, 0.1):
        await between.exchange(at, at + 0.001)
    await between.exchange(0.2, 3.0)
    late = between.received[-1]
    assert (round(late.sent_at, 3), round(late.asked_at, 3)) == (50_000.201, 50_000.191)
    assert isinstance(late.shown, ConsumersReading)
    assert round(late.shown.samples[0].at.mono, 3) == 50_000.201
    assert late.shown.samples[0].at.wall - late.shown.samples[0].at.mono == pytest.approx(
        between.clock.now().wall - between.clock.now().mono
    )


async def test_the_sender_has_its_own_place_in_the_order(between: Between) -> None:
    for at in (0.0, 0.1):
        await between.exchange(at)
    assert between.received[-1].position == Position(True, True, share_of("S", "them"))


async def test_what_is_not_wanted_shows_nothing_and_what_rests_on_it_can_be_used(between: Between) -> None:
    await between.exchange(0.0)
    between.wanted = False
    await between.exchange(0.1)
    between.wanted = True
    await between.exchange(0.2)
    assert [round(one.sent_at, 1) for one in between.received] == [50_000.2]
    shown = between.received[0].shown
    assert isinstance(shown, ConsumersReading) and [one.pending for one in shown.samples] == [0]


async def test_what_came_while_nothing_could_be_believed_is_not_used_later(between: Between) -> None:
    await between.exchange(0.0)
    between.believed = False
    arrive = between.send(0.1)
    arrive(0.1)
    between.believed = True
    await settled()
    assert not between.received
    await between.exchange(0.2)
    assert len(between.received) == 1


@pytest.mark.parametrize("which", ["first", "last"])
async def test_a_message_is_used_if_it_can_be_believed_when_its_last_chunk_comes(between: Between, which: str) -> None:
    """It was answered before its first chunk, so what a gap in the middle of it can hide shows in its age."""
    await between.exchange(0.0)
    read = seen(*(sample(0.1, f"c{n}") for n in range(50)))
    first, *middle, last = sent(between.encoder.reading(read, AskedFor(0.0), HERE, now(0.1)), 4000)
    between.believed = which != "first"
    between.receiver.receive(topic_of("S"), first)
    between.believed = True
    for chunk in middle:
        between.receiver.receive(topic_of("S"), chunk)
    between.believed = which != "last"
    between.receiver.receive(topic_of("S"), last)
    await settled()
    assert len(between.received) == (which == "first")
    between.believed = True
    await between.exchange(0.2, 0.2)
    assert len(between.received) == (2 if which == "first" else 1)


async def test_the_first_message_of_a_sender_is_not_used_however_many_chunks_it_has(between: Between) -> None:
    read = seen(*(sample(0.0, f"c{n}") for n in range(50)))
    sent_at = iter(range(100))
    chunks = chunks_of(between.encoder.reading(read, AskedFor(0.0), HERE, now(0.0)), 4000, lambda: next(sent_at) / 100)
    for chunk in filter(None, chunks):
        between.receiver.receive(topic_of("S"), chunk)
        await settled()
    assert not between.received and not between.counted and between.new == ["them"]


async def test_a_line_without_end_is_not_kept_in_memory(between: Between) -> None:
    header = '{"t":"broadcast","version":1,"sender":"x","sent":1,"n":0,"rests":0,"part":%d,"more":true}\n'
    for part in range(20):
        between.receiver.receive(topic_of("S"), (header % part).encode() + b"x" * 64_000)
        await settled()
    # Refused when it is too long; what follows has no beginning.
    assert between.counted == ["reading_unusable"] * (20 - LONGEST_LINE // 64_000)


async def test_a_message_that_shows_all_replaces_what_waits_before_it(between: Between) -> None:
    await between.exchange(0.0)
    for at in (0.1, 0.2, 5.3):
        between.send(at)(at)
    await settled()
    assert [round(one.sent_at, 1) for one in between.received] == [50_005.3]
    assert not between.counted


async def test_no_more_than_the_limit_waits(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    await between.exchange(0.0)
    monkeypatch.setattr(broadcast_receiver, "MOST_WAITING", 2)
    for at in (0.1, 0.2, 0.3):
        between.send(at)(at)
    assert between.counted == ["reading_unusable"]
    await settled()
    assert [round(one.sent_at, 1) for one in between.received] == [50_000.1, 50_000.2]
    await between.exchange(5.5)
    assert len(between.received) == 3, "the next one that shows all is used"


async def test_the_memory_of_a_sender_that_is_gone_is_given_back(between: Between) -> None:
    await between.exchange(0.0)
    assert between.receiver._sources and between.receiver._senders
    await between.clock.run(2 * UNUSED_FOR + 1)
    assert not between.receiver._sources and not between.receiver._senders


async def test_what_is_in_use_is_not_dropped_where_there_are_many(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    between.receiver._senders.most = between.receiver._sources.most = 3
    for n in range(10):
        await between.exchange(n / 10)
        stranger = ReadingEncoder(f"stranger {n}", WHOLE_EVERY)
        for chunk in sent(stranger.reading(seen(sample()), AskedFor(0.0), HERE, now(n / 10))):
            between.receiver.receive(topic_of("S"), chunk)
        await settled()
    assert len(between.received) == 9
    assert between.new.count("them") == 1
    assert not between.counted


async def test_a_large_message_is_decoded_in_slices() -> None:
    """The callback returns before anything is decoded; others have a turn after each few consumers."""
    between = Between()
    clock = SteppingClock(mono=50_000.0)
    between.receiver._clock = clock
    async with meanwhile(between.receiver.run()):
        between.send(0.0, 1000)(0.0)
        await settled()
        turns = 0
        between.send(5.0, 1000)(5.0)
        assert not between.received
        while not between.received and turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert len(between.received) == 1
        assert turns > 1000 / 50 / 3
