"""The messages in which the reader of a stream shares what its ack metrics and advisories came to: summed lines of the
recording, and the names of their consumers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from nats_backpressure.protocol.subjects import BadTail, decode, encode
from nats_backpressure.recording.format import Count, HintsLine, Seconds, Text

TOPIC: Final = "hints."
SCHEMA: Final = 1
"""New fields do not change it; a message of another schema is not read."""
AROUND: Final = 256
"""Bytes of a message beside its lines and names."""
MOST_HINTS: Final = 10_000_000
"""Hints in one message; more than that are forged."""


class HintsMessage(Struct, frozen=True, omit_defaults=True):
    """What came of one stream since the message before it, or a part of that."""

    schema: int
    sender: Annotated[str, Meta(min_length=1, max_length=64)]
    """The process that sent it."""
    n: Count
    """Larger than that of the message before it."""
    since: Seconds
    """When the first of the hints came, on the sender's monotonic clock."""
    sent: Seconds
    """On the same clock."""
    names: tuple[Text, ...]
    hints: tuple[HintsLine, ...]
    """`c` is the place of the consumer in `names`."""


_ENCODER = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[HintsMessage]] = msgspec.json.Decoder(HintsMessage)


def topic_of(stream: str) -> str:
    """The topic under which the hints of a stream are shared."""
    return TOPIC + encode(stream)


def stream_of(topic: str) -> str | None:
    """The reverse; None for what is no such topic."""
    try:
        return decode(topic.removeprefix(TOPIC))
    except BadTail:
        return None


def encode_hints(
    sender: str, numbers: Iterator[int], times: tuple[float, float], lines: Sequence[tuple[str, HintsLine]], room: int
) -> list[bytes]:
    """The messages with these lines of consumers, each with the next of the numbers. `times`: when the first of the
    hints came, and now. `room`: bytes that a message may have."""
    parts: list[list[tuple[str, HintsLine]]] = []
    room, free = room - AROUND, 0
    for name, line in lines:
        around = len(_ENCODER.encode(name)) + 2
        for piece in _pieces(line, room - around):
            size = len(_ENCODER.encode(piece)) + around
            if not parts or size > free:
                parts.append([])
                free = room
            parts[-1].append((name, piece))
            free -= size
    return [_ENCODER.encode(_message(sender, next(numbers), times, part)) for part in parts]


def _pieces(line: HintsLine, room: int) -> list[HintsLine]:
    """A line as several, none longer than `room` bytes if that is possible."""
    if len(line.acks) < 2 or len(_ENCODER.encode(line)) <= room:
        return [line]
    half = len(line.acks) // 2
    first = msgspec.structs.replace(line, acks=line.acks[:half])
    rest = HintsLine(line.c, line.at, line.acks[half:])
    return [*_pieces(first, room), *_pieces(rest, room)]


def _message(sender: str, n: int, times: tuple[float, float], part: Sequence[tuple[str, HintsLine]]) -> HintsMessage:
    lines = tuple(msgspec.structs.replace(line, c=place) for place, (_, line) in enumerate(part))
    return HintsMessage(SCHEMA, sender, n, *times, tuple(name for name, _ in part), lines)


def decode_hints(payload: bytes) -> HintsMessage | None:
    """The message of another replica; None for what cannot be read, or is impossible."""
    try:
        message = _DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if message.schema != SCHEMA or any(line.c >= len(message.names) for line in message.hints):
        return None
    return message if sum(map(_count, message.hints)) <= MOST_HINTS else None


def _count(line: HintsLine) -> int:
    return sum(times for _, _, times in line.acks) + line.naks + line.max_deliveries + line.terminated
