"""What is sent to other replicas: all that the connection takes, in turns, and what happens where it takes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Sample
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.recording.broadcast_decoder import BroadcastDecoder
from nats_backpressure.recording.broadcast_format import BroadcastLine, UnreadableMessage, decode_chunk, stream_of
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.broadcast_sender import (
    MOST_UNSENT,
    UNUSED_FOR,
    WAIT_FOR_ROOM,
    BroadcastSender,
    Unsent,
)
from nats_backpressure.recording.format import LONGEST_LINE
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from tests.fakes.clock import settled
from tests.recording.observations import LOOK, now, sample, seen
from tests.recording.stepping_clock import SteppingClock
from tests.recording.test_broadcast import HERE, WHOLE_EVERY, at_once
from tests.support.background import meanwhile

UNSENT = "reading_unsent"
LONG = "x" * LONGEST_LINE


class Channel:
    """A ReplicaChannel that takes what it is told to take."""

    def __init__(self) -> None:
        self.has_room, self.connected = True, True
        self.sent: list[tuple[str, bytes]] = []

    def room(self) -> int:
        return 64 * 1024 if self.has_room else 0

    def publish(self, topic: str, payload: bytes) -> bool:
        if self.connected:
            self.sent.append((stream_of(topic), payload))
        return self.connected

    def headers(self) -> list[tuple[str, BroadcastLine]]:
        return [(stream, decode_chunk(chunk)[0]) for stream, chunk in self.sent]


class Sending:
    def __init__(self) -> None:
        self.clock, self.channel, self.counted = SteppingClock(), Channel(), Counter[str]()
        self.sender = BroadcastSender(
            self.clock,
            "me",
            self.channel,
            WHOLE_EVERY,
            lambda what: self.counted.update([what]),  # type: ignore[arg-type]
        )
        self._decoders: dict[str, BroadcastDecoder] = {}
        self._read = 0

    def add(self, shown: Any, at: float = 0.0, stream: str = "S") -> None:
        self.sender.add(stream, Unsent(shown, AskedFor(0.0), HERE, now(at)))

    def read(self, consumers: int, at: float = 0.0, stream: str = "S", **more: Any) -> None:
        """A reading in which all moved."""
        self._read += 1
        samples = (sample(at, f"c{n}", pending=self._read) for n in range(consumers))
        self.add(seen(*samples, look=replace(LOOK, name=stream), **more), at, stream)

    def received(self) -> list[ConsumersReading | StreamsReading | Sample]:
        """What others can use of what was sent since the last call."""
        usable = []
        for stream, chunk in self.channel.sent:
            decoder = self._decoders.setdefault(stream, BroadcastDecoder(stream))
            try:
                if decoder.take(*decode_chunk(chunk)):
                    usable.append(at_once(decoder.shown(now)))
            except UnreadableMessage:
                continue
        self.channel.sent.clear()
        return usable


@pytest.fixture
async def sending() -> AsyncIterator[Sending]:
    sending = Sending()
    async with meanwhile(sending.sender.run()):
        yield sending


async def test_what_is_read_is_sent_soon(sending: Sending) -> None:
    sending.read(3)
    await settled()
    sending.add(sample(0.1, "c1", pending=9), 0.2)
    sending.add(StreamsReading((LOOK,), True, 0.001, 1), 0.2, ALL_STREAMS)
    await settled()
    sending.add(StreamsReading((LOOK,), False, 0.001, 1, partial=True), 0.3, ALL_STREAMS)
    await settled()
    kinds = [type(shown).__name__ for shown in sending.received()]
    assert kinds == ["ConsumersReading", "Sample", "StreamsReading", "StreamsReading"]
    assert not sending.counted


async def test_a_large_reading_waits_for_room_and_holds_up_no_small_one(sending: Sending) -> None:
    sending.channel.has_room = False
    sending.read(2000)
    sending.read(1, stream="small")
    await sending.clock.run(1.0)
    assert not sending.channel.sent
    sending.channel.has_room = True
    await sending.clock.run(2 * WAIT_FOR_ROOM)
    order = [stream for stream, _ in sending.channel.headers()]
    assert order.count("S") > 5 and order.index("small") < 3
    assert sorted(len(shown.samples) for shown in sending.received()) == [1, 2000]  # type: ignore[union-attr]


async def test_a_newer_reading_replaces_what_waits_but_not_what_is_being_sent(sending: Sending) -> None:
    sending.read(2000)
    while not sending.channel.sent:
        await sending.clock.sleep(0)
    sending.channel.has_room = False
    for n in range(1, 4):
        sending.read(2000, n / 10)
    sending.read(1, 0.5, partial=True)
    await sending.clock.run(1.0)
    sending.channel.has_room = True
    await sending.clock.run(1.0)
    pending = [shown.samples[0].pending for shown in sending.received()]  # type: ignore[union-attr]
    assert pending == [1, 4, 5]
    assert sending.counted == {UNSENT: 2}


async def test_a_few_readings_of_a_part_wait_and_the_oldest_are_dropped(sending: Sending) -> None:
    sending.read(3)
    await settled()
    sending.channel.has_room = False
    for n in range(1, MOST_UNSENT + 3):
        sending.read(1, n / 10, partial=True)
    sending.channel.has_room = True
    await sending.clock.run(1.0)
    pending = [shown.samples[0].pending for shown in sending.received()]  # type: ignore[union-attr]
    assert pending == [1, *range(4, MOST_UNSENT + 4)]
    assert sending.counted == {UNSENT: 2}


async def test_after_a_message_that_was_not_sent_to_its_end_the_next_one_shows_all(sending: Sending) -> None:
    sending.read(2000)
    while len(sending.channel.sent) < 3:
        await sending.clock.sleep(0)
    sending.channel.connected = False
    await settled()
    assert sending.counted == {UNSENT: 1}
    sending.channel.connected = True
    sending.read(2000, 0.1)
    await settled()
    assert [shown.samples[0].pending for shown in sending.received()] == [2]  # type: ignore[union-attr]


async def test_a_reading_that_is_too_long_does_not_take_others_with_it(sending: Sending) -> None:
    sending.add(seen(sample(), look=replace(LOOK, subjects=(LONG,))))
    sending.read(1, stream="other")
    await settled()
    assert [shown.look.name for shown in sending.received()] == ["other"]  # type: ignore[union-attr]
    assert sending.counted == {UNSENT: 1}
    sending.add(sample(0.1, "c"))
    sending.read(1, 0.2)
    await settled()
    assert len(sending.received()) == 1, "and not its stream for ever"


async def test_a_message_of_too_many_chunks_is_counted(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nats_backpressure.recording.broadcast_format.MOST_CHUNKS", 3)
    sending.read(2000)
    await settled()
    assert sending.received() == []
    assert sending.counted == {UNSENT: 1}


async def test_a_consumer_read_alone_whose_line_is_too_long_is_counted(sending: Sending) -> None:
    sending.read(1)
    await settled()
    sending.add(replace(sample(0.1), config=ConsumerConfig(filters=(LONG,))))
    await settled()
    assert len(sending.received()) == 1 and sending.counted == {UNSENT: 1}


async def test_the_memory_of_a_stream_that_is_not_read_any_more_is_given_back_and_its_numbers_go_on(
    sending: Sending,
) -> None:
    for n in range(5):
        sending.read(1, n / 10)
        await settled()
    assert len(sending.received()) == 5
    last_at = now(0.4).mono
    await sending.clock.run(max(0.0, last_at - sending.clock.now().mono) + 2 * UNUSED_FOR + 1)
    assert not sending.sender._streams
    sending.read(1, 700.0)
    await settled()
    assert len(sending.received()) == 1, "others do not take it for an old message"


async def test_the_stream_that_was_read_least_recently_is_forgotten_first(sending: Sending) -> None:
    sending.sender._streams.most = 2
    for n in range(4):
        sending.read(1, n / 10, "often")
        sending.read(1, n / 10, f"once {n}")
        await settled()
    often = [header for stream, header in sending.channel.headers() if stream == "often"]
    assert [header.n - header.rests for header in often] == [0, 1, 2, 3]


async def test_where_nobody_is_left_nothing_more_is_sent(sending: Sending) -> None:
    sending.read(2000)
    while not sending.channel.sent:
        await sending.clock.sleep(0)
    sending.sender.clear()
    await settled()
    assert len(sending.channel.sent) < 5 and not sending.sender._streams
