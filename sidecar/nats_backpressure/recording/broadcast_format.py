"""The messages in which a replica shares what it reads: JSON lines of the recording after a header line of their own.

A *whole* message can be used by itself. Each one after it has only what changed since the message before, whose number
is one less; the header names the whole one that it rests on. A message longer than LONGEST_CHUNK is published in
chunks, each with the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.subjects import BadTail, decode, encode
from nats_backpressure.recording.format import (
    ConsumerLine,
    Count,
    ReadLine,
    SampleLine,
    Seconds,
    StreamLine,
    StreamNumbers,
    Text,
)

TOPIC: Final = "reading."
VERSION: Final = 1
"""New fields and kinds of lines do not change it; a message of another version is not used."""
LONGEST_CHUNK: Final = 64 * 1024
"""Bytes of one published message."""
MOST_CHUNKS: Final = 1000
"""Chunks of one message; a longer message is not published, and others read the stream themselves."""


class BroadcastLine(Struct, frozen=True, tag_field="t", tag="broadcast", omit_defaults=True):
    """The first line of each chunk. Times are monotonic, of the sender's clock."""

    version: Count
    sender: Text
    """A name of the process, which no other process has."""
    sent: Seconds
    n: Count
    """The number of this message about this stream."""
    rests: Count
    """The number of the whole message that it rests on; `n` if it is whole."""
    part: Count = 0
    parts: Count = 1
    writes: bool = True
    """Whether the sender's writes and publishes succeed."""
    settled: bool = True
    """See `core.reading.sharing.Position`."""
    asked: Seconds = 0.0
    """When the reading was asked for."""
    first: Seconds = 0.0
    """When the first sample of the reading came; one that has no line came then."""
    took: Seconds = 0.0
    complete: bool = False
    partial: bool = False
    unnamed: Count = 0
    missing: tuple[Text, ...] = ()
    malformed: tuple[Text, ...] = ()
    base: StreamNumbers | None = None
    """The newest look at the stream that was answered before the reading was asked for."""


class LookLine(Struct, frozen=True, tag_field="t", tag="look", omit_defaults=True):
    """A look at a stream that has a `stream` line."""

    s: Count
    look: StreamNumbers
    consumers: Count = 0


class ListLine(Struct, frozen=True, tag_field="t", tag="list", omit_defaults=True):
    """The end of a list of streams: all that have a line were shown, but those that left."""

    left: tuple[Count, ...] = ()
    only: bool = False
    """Whether only the streams with a line in this message were looked at."""


BodyLine = StreamLine | ConsumerLine | SampleLine | ReadLine | LookLine | ListLine

_HEADER = msgspec.json.Decoder(BroadcastLine)
_BODY: Final[msgspec.json.Decoder[BodyLine]] = msgspec.json.Decoder(BodyLine)
_ENCODER = msgspec.json.Encoder()


class UnreadableMessage(Exception):
    """A message that cannot be used, and why."""


def topic_of(stream: str) -> str:
    """The topic under which replicas share what they read of a stream, or of ALL_STREAMS."""
    return TOPIC + (stream if stream == ALL_STREAMS else encode(stream))


def stream_of(topic: str) -> str:
    """The reverse. Raises UnreadableMessage."""
    tail = topic.removeprefix(TOPIC)
    try:
        return tail if tail == ALL_STREAMS else decode(tail)
    except BadTail as error:
        raise UnreadableMessage(str(error)[:200]) from None


def encode_message(header: BroadcastLine, lines: Sequence[BodyLine]) -> list[bytes]:
    """The chunks of a message; none if it takes more than MOST_CHUNKS, or has a line that is too long for one."""
    room = LONGEST_CHUNK - len(_ENCODER.encode(header)) - 64
    bodies: list[list[bytes]] = [[]]
    size = 0
    for line in lines:
        data = _ENCODER.encode(line)
        if len(data) > room:
            return []
        if size + len(data) + 1 > room:
            bodies.append([])
            size = 0
        bodies[-1].append(data)
        size += len(data) + 1
    if len(bodies) > MOST_CHUNKS:
        return []
    parts = len(bodies)
    headers = (msgspec.structs.replace(header, part=part, parts=parts) for part in range(parts))
    return [b"\n".join((_ENCODER.encode(one), *body)) for one, body in zip(headers, bodies, strict=True)]


def decode_chunk(data: bytes) -> tuple[BroadcastLine, list[bytes]]:
    """The header of a chunk, and the lines after it as they came. Raises UnreadableMessage."""
    head, *lines = data.split(b"\n")
    try:
        header = _HEADER.decode(head)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableMessage(str(error)[:200]) from None
    if header.version != VERSION:
        raise UnreadableMessage(f"version {header.version}; this one reads {VERSION}")
    if not header.rests <= header.n or not header.part < header.parts <= MOST_CHUNKS:
        raise UnreadableMessage("impossible numbers")
    return header, lines


def decode_body(lines: Sequence[bytes]) -> list[BodyLine]:
    """Raises UnreadableMessage."""
    try:
        return [_BODY.decode(line) for line in lines]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableMessage(str(error)[:200]) from None
