"""Recordings that a test writes: one stream and one consumer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.recording.decoder import Decoder, Observation
from nats_backpressure.recording.format import (
    BadLine,
    ConsumerLine,
    HeaderLine,
    Line,
    ReadLine,
    SampleLine,
    StreamLine,
    StreamNumbers,
    encode_line,
)

SUBJECT = "orders.new"
MONO, WALL = 1000.0, 1_800_000_000.0
Moment = tuple[float, int, int]
"""Seconds since the beginning, messages pending, and in flight."""


def beginning(at: float = 0.0, longest_interval: float = 5.0) -> tuple[Line, ...]:
    return (
        HeaderLine(1, "backpressure", "0.0.0", (MONO + at, WALL + at), longest_interval),
        StreamLine(0, "ORDERS", "2026-11-23T14:00:00Z", (SUBJECT,)),
        ConsumerLine(1, 0, "worker", "2026-11-23T14:00:01Z", ConsumerConfig()),
    )


def reading(at: float, pending: int = 0, inflight: int = 0, done: int = 0) -> tuple[Line, ...]:
    """The consumer with so many messages before and behind it, after it acknowledged `done`."""
    delivered = (done + inflight, done + inflight)
    return (
        SampleLine(1, pending=pending, inflight=inflight, delivered=delivered, floor=(done, done)),
        ReadLine(0, (MONO + at, WALL + at), StreamNumbers(1, done + inflight + pending, done + inflight + pending)),
    )


def still(at: float) -> ReadLine:
    return ReadLine(0, (MONO + at, WALL + at))


def written(lines: Iterable[Line]) -> bytes:
    return b"".join(map(encode_line, lines))


def observed(lines: Iterable[Line]) -> Iterator[Observation]:
    decoder = Decoder()
    for line in lines:
        item = decoder.decode(line)
        assert not isinstance(item, BadLine), item.why
        if item is not None:
            yield item


def minutes(n: int) -> Iterator[Line]:
    """One sample a minute, with a busy hour every day in which the queue grows to 3,600 and goes again."""
    yield from beginning(longest_interval=60.0)
    done = 0
    for minute in range(n):
        into = minute % 1440 - 720
        if 0 <= into < 60:
            pending = 60 * (into if into < 30 else 60 - into) * 2
            done += 600
            yield from reading(60.0 * minute, pending, 20, done)
        elif into == 60:
            done += 620
            yield from reading(60.0 * minute, 0, 0, done)
        else:
            yield still(60.0 * minute)
