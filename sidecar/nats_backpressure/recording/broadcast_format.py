"""The messages in which a replica shares what it reads: JSON lines of the recording after a header line of their own.

A *whole* message can be used by itself. Each one after it has only what changed since the message before, whose number
is one less; the header names the whole one that it rests on. A message is published in chunks: each is a header, and as
much of the lines as fits, wherever that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.subjects import BadTail, decode, encode
from nats_backpressure.recording.format import (
    LONGEST_LINE,
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
"""New fields and kinds of lines do not change it: a build that does not know them skips them. A message of another
version is not used."""
MOST_CHUNKS: Final = 1000
"""Chunks of one message, 64 MB in all. What takes more is not shared: others read that stream themselves."""
SHORTEST_CHUNK: Final = 2048
"""Bytes; a header may have half of them."""
NAMES_IN_LINE: Final = 500
"""Names of consumers in one line."""


class BroadcastLine(Struct, frozen=True, tag_field="t", tag="broadcast", omit_defaults=True):
    """The first line of each chunk. Times are monotonic, of the sender's clock."""

    version: Count
    sender: Text
    """A name of the process, which no other process has."""
    sent: Seconds
    """When this chunk was sent."""
    n: Count
    """The number of this message about this stream."""
    rests: Count
    """The number of the whole message that it rests on; `n` if it is whole."""
    part: Count = 0
    """The number of this chunk."""
    more: bool = False
    """Whether further chunks follow."""
    writes: bool = True
    """Whether the sender's writes and publishes succeed."""
    settled: bool = True
    level: Level = Level.HOT
    every: Seconds = 0.0
    whole: bool = True
    settled_for_all: bool | None = None
    """See `core.reading.sharing.Position`."""
    asked: Seconds = 0.0
    """When the reading was asked for."""
    answered: Seconds = 0.0
    """When it was answered."""
    first: Seconds = 0.0
    """When the first sample of the reading came; one that has no line came then."""
    took: Seconds = 0.0
    trip: Seconds = 0.0
    """The seconds of `took` that the link needed."""
    complete: bool = False
    partial: bool = False
    unnamed: Count = 0
    base: StreamNumbers | None = None
    """The newest look at the stream that was answered before the reading was asked for."""
    server_time: Seconds | None = None
    """With a list of streams: Unix seconds on the server's clock when it answered."""


class UnreadLine(Struct, frozen=True, tag_field="t", tag="unread", omit_defaults=True):
    """Names of consumers that exist and could not be read, NAMES_IN_LINE at most."""

    missing: tuple[Text, ...] = ()
    malformed: tuple[Text, ...] = ()


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
    partly: bool = False
    """Whether a stream has no line because that would be longer than LONGEST_LINE."""


BodyLine = StreamLine | ConsumerLine | SampleLine | ReadLine | LookLine | ListLine | UnreadLine

_HEADER = msgspec.json.Decoder(BroadcastLine)
_BODY: Final[msgspec.json.Decoder[BodyLine]] = msgspec.json.Decoder(BodyLine)
_KINDS = frozenset(kind.__struct_config__.tag for kind in get_args(BodyLine))
_ENCODER = msgspec.json.Encoder()


class BroadcastMessage(Struct):
    """A message that is encoded while it is sent: its header, and its lines. An empty line is a place to pause."""

    header: BroadcastLine
    lines: Iterator[bytes]


class TooLong(Exception):
    """A message has more than MOST_CHUNKS, or cannot do without a line that is longer than LONGEST_LINE."""


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


def stream_line(number: int, look: StreamLook) -> StreamLine:
    """The line that gives a stream its number."""
    return StreamLine(number, look.name, look.created, look.subjects, look.origin, look.retention)


def encode_line(line: BodyLine) -> bytes:
    """Raises TooLong."""
    data = _ENCODER.encode(line)
    if len(data) >= LONGEST_LINE:
        raise TooLong
    return data


def chunks_of(message: BroadcastMessage, longest: int, mono: Callable[[], float]) -> Iterator[bytes]:
    """The chunks, of `longest` bytes at most but not below SHORTEST_CHUNK, each with the time at which it is taken. An
    empty one is a place to pause. Raises TooLong."""
    header, waiting, part = message.header, bytearray(), 0
    room = max(longest, SHORTEST_CHUNK) - len(_ENCODER.encode(header)) - 100
    for line in message.lines:
        if not line:
            yield b""
            continue
        waiting += line
        waiting += b"\n"
        while len(waiting) > room:
            if part == MOST_CHUNKS - 1:
                raise TooLong
            yield _chunk(header, mono(), part, True, waiting[:room])
            del waiting[:room]
            part += 1
    yield _chunk(header, mono(), part, False, waiting)


def _chunk(header: BroadcastLine, sent: float, part: int, more: bool, body: bytearray) -> bytes:
    first = _ENCODER.encode(msgspec.structs.replace(header, sent=sent, part=part, more=more))
    return first + b"\n" + body


def decode_chunk(data: bytes) -> tuple[BroadcastLine, bytes]:
    """The header of a chunk, and what follows it as it came. Raises UnreadableMessage."""
    first, _, body = data.partition(b"\n")
    try:
        header = _HEADER.decode(first)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableMessage(str(error)[:200]) from None
    if header.version != VERSION:
        raise UnreadableMessage(f"version {header.version}; this one reads {VERSION}")
    if header.rests > header.n or header.part >= MOST_CHUNKS:
        raise UnreadableMessage("impossible numbers")
    return header, body


def decode_lines(lines: Sequence[bytes]) -> Iterator[BodyLine]:
    """Those of a kind that is known here. Raises UnreadableMessage."""
    for line in lines:
        try:
            yield _BODY.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            if not _is_of_another_kind(line):
                raise UnreadableMessage(str(error)[:200]) from None


def _is_of_another_kind(line: bytes) -> bool:
    """Whether a later build may have written it."""
    try:
        value: Any = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("t"), str) and value["t"] not in _KINDS
